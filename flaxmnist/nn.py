"""Layers of linen that train fast on every platform, for models of your own.

They have the names, arguments, parameters and values of linen's.
"""

from flaxmnist.core.nn import *  # noqa: F403
from flaxmnist.core.nn import __all__ as __all__
