"""CIFAR-10 (Krizhevsky, 2009) from a directory of images, one per class.

python -m flaxmnist.main --config configs/cifar10.py --config.data.dir=DIR

DIR contains train/<class>/*.png (or JPEG) and test/<class>/*.png, or the files that the
authors publish. Without data.dir, TensorFlow Datasets prepares the data. Seed 0 reaches
85.24 % on test; see docs/results.md.
"""

from flaxmnist.config import make_config, variant

VARIANTS = {
    "smoke": {
        "num_epochs": None,
        "num_steps": 20,
        "log_every": 10,
        "eval_every": 20,
        "checkpoint_every": 20,
        "model": {"name": "convnet", "layers": "4C3-BN-MP2-8C3-BN-AP"},
        "data": {"source": "synthetic"},
    },
}


def get_config(arg=None):
    """Returns the configuration; `arg` names a variant."""
    recipe = {
        "num_epochs": 14,
        "batch_size": 128,
        "eval_every": "7 epochs",
        "model": {
            "name": "convnet",
            "layers": (
                "32C3-BN-MP2-64C3-BN-64C3-BN-MP2-128C3-BN-128C3-BN-MP2-256C3-BN-AP"
            ),
        },
        "optimizer": {
            "name": "adamw",
            "learning_rate": 5e-3,
            "schedule": "one_cycle",
            "weight_decay": 0.05,
        },
        "loss": {"label_smoothing": 0.1},
        "augment": {"flip": True, "crop": 2},
        "data": {"name": "cifar10"},
    }
    return make_config(**(recipe | variant(arg, VARIANTS)))
