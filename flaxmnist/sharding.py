"""A mesh of devices, and rules that split arrays over its axes.

Batches are split over the axis ``"data"``. A :class:`Layout` can split dense layers
over ``"model"`` and the whole state over ``"data"``. The compiler propagates the
shardings of a program's arguments and inserts the communication; a step constrains only
its state.
"""

from flaxmnist.core.sharding import *  # noqa: F403
from flaxmnist.core.sharding import __all__ as __all__
