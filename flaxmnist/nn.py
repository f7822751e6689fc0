"""Layers of linen that train fast on every platform, for models of your own.

They have the names, arguments, parameters and values of linen's.
"""

from flaxmnist.core.nn import Conv, avg_pool, max_pool

__all__ = [
    "Conv",
    "avg_pool",
    "max_pool",
]
