"""Two convolutions and a dense layer: 99.51 ± 0.03 % on test in four epochs.

python -m flaxmnist.main --config configs/cnn.py
python -m flaxmnist.main --config configs/cnn.py:smoke     # seconds, made-up data

Accuracies are means and standard deviations of seeds 0 to 9; see docs/results.md.

`accurate` has residual blocks and distorted images: 99.67 ± 0.03 % in 16 epochs.
`fast` reaches 99 % in one epoch. `tiny` has 9,640 parameters: 99.47 ± 0.05 % in 16
epochs.

python -m flaxmnist.main --config configs/cnn.py:accurate
python -m flaxmnist.main --config configs/cnn.py:fast
python -m flaxmnist.main --config configs/cnn.py:tiny

`robust` trains the same network on rotated, scaled, sheared, shifted and distorted
digits with thinner and thicker strokes, haze and noise. A fifth of its images are
random glyphs, labelled as every class equally (outlier exposure), so that it is less
sure of pictures that are not digits. The last epoch uses plain images. Test accuracy:
99.53 ± 0.07 % (seeds 0 to 2).

python -m flaxmnist.main --config configs/cnn.py:robust

`layers` is the CNN of TensorFlow's "A Guide to TF Layers" (cnn_mnist.py, an Estimator):
Glorot's uniform initialization, dropout 0.4, gradient descent at 0.001, 20,000 steps of
100 images, the probabilities logged every 50. Published: 97.3 %; measured on seed 0:
96.91 %.

`deep` is that of "Deep MNIST for Experts" (mnist_deep.py): truncated normal of 0.1,
biases of 0.1, dropout 0.5, Adam at 1e-4, 20,000 steps of 50 images, a line every 100.
Published: about 99.2 %; measured on seed 0: 99.29 %.

python -m flaxmnist.main --config configs/cnn.py:layers
python -m flaxmnist.main --config configs/cnn.py:deep
"""

from typing import Any

from flaxmnist.config import make_config, variant

# The training of the tutorials: neither label smoothing nor other images.
PLAIN: dict[str, Any] = {"loss": {}, "augment": {}}

VARIANTS = {
    "smoke": PLAIN
    | {
        "num_epochs": None,
        "num_steps": 40,
        "log_every": 10,
        "eval_every": 20,
        "checkpoint_every": 20,
        "model": {"name": "cnn", "features": (4, 8), "hidden": (32,)},
        "data": {"source": "synthetic"},
    },
    "layers": PLAIN
    | {
        "num_epochs": None,
        "num_steps": 20_000,
        "batch_size": 100,
        "eval_every": 20_000,
        "checkpoint_every": 2_000,
        "log_tensors": ("probabilities",),
        "every_n_steps": 50,
        "model": {"name": "cnn", "kernel_init": "glorot_uniform"},
        "optimizer": {"name": "sgd", "learning_rate": 1e-3},
    },
    "accurate": {
        "num_epochs": 16,
        "batch_size": 100,
        "eval_every": "16 epochs",
        "checkpoint_every": "1 epochs",
        "model": {
            "name": "convnet",
            "layers": "40C5-MP2-R-BN-80C3-MP2-R-BN-160C3-MP2-R-BN-AP",
        },
        "optimizer": {
            "name": "adamw",
            "learning_rate": 2e-3,
            "schedule": "cosine",
            "warmup": "1 epochs",
            "b2": 0.99,
            "weight_decay": 0.02,
        },
        "loss": {"label_smoothing": 0.1},
        "augment": {
            "rotate": 10.0,
            "scale": 0.1,
            "shear": 0.1,
            "translate": 2.0,
            "elastic": 1.0,
            "stop_before_end": "1 epochs",
        },
    },
    "fast": {
        "num_epochs": 1,
        "batch_size": 64,
        "model": {"name": "convnet", "layers": "16C5S2V-32C3-MP2-128N"},
        "optimizer": {
            "name": "adam",
            "learning_rate": 7e-3,
            "schedule": "one_cycle",
            "b1": 0.7,
            "b2": 0.9,
        },
        "loss": {"label_smoothing": 0.05},
        "augment": {},
    },
    "tiny": {
        "num_epochs": 16,
        "eval_every": "16 epochs",
        "model": {
            "name": "convnet",
            "layers": "10C3-BN-10C3-BN-MP2-14C3-BN-14C3-BN-MP2-18C3-BN-18C3-BN-AP",
        },
        "optimizer": {
            "name": "adamw",
            "learning_rate": 5e-3,
            "schedule": "cosine",
            "warmup": "1 epochs",
            "b2": 0.99,
            "weight_decay": 0.02,
        },
        "loss": {},
        "augment": {
            "rotate": 10.0,
            "scale": 0.1,
            "shear": 0.1,
            "translate": 1.5,
            "elastic": 1.0,
            "stop_before_end": "1 epochs",
        },
    },
    "robust": {
        "num_epochs": 8,
        "loss": {},
        "augment": {
            "rotate": 20.0,
            "scale": 0.15,
            "shear": 0.15,
            "translate": 2.0,
            "elastic": 1.0,
            "thickness": 0.6,
            "haze": 0.5,
            "noise": 0.2,
            "outliers": 0.2,
            "stop_before_end": "1 epochs",
        },
    },
    "deep": PLAIN
    | {
        "num_epochs": None,
        "num_steps": 20_000,
        "batch_size": 50,
        "log_every": 100,
        "eval_every": 20_000,
        "checkpoint_every": 2_000,
        "model": {
            "name": "cnn",
            "dropout_rate": 0.5,
            "kernel_init": "truncated_normal",
            "kernel_stddev": 0.1,
            "bias_init": 0.1,
        },
        "optimizer": {"name": "adam", "learning_rate": 1e-4},
    },
}


def get_config(arg=None):
    """Returns the configuration; `arg` names a variant."""
    recipe = {
        "num_epochs": 4,
        "batch_size": 128,
        "model": {"name": "cnn"},
        "optimizer": {
            "name": "adamw",
            "learning_rate": 3e-3,
            "schedule": "one_cycle",
            "weight_decay": 0.05,
        },
        "loss": {"label_smoothing": 0.1},
        "augment": {"crop": 1},
    }
    return make_config(**(recipe | variant(arg, VARIANTS)))
