"""Softmax regression: 92 % and more in eight epochs.

python -m flaxmnist.main --config configs/softmax.py
python -m flaxmnist.main --config configs/softmax.py:smoke     # seconds, made-up data
"""

from flaxmnist.config import make_config, variant

VARIANTS = {
    "smoke": {"num_epochs": 5, "data": {"source": "synthetic"}},
}


def get_config(arg=None):
    """Returns the configuration; `arg` names a variant."""
    recipe = {
        "num_epochs": 8,
        "batch_size": 128,
        "model": {"name": "softmax"},
        "optimizer": {"name": "adam", "learning_rate": 4e-3, "schedule": "cosine"},
    }
    return make_config(**(recipe | variant(arg, VARIANTS)))
