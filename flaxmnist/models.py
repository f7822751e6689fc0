"""Models that map images to logits."""

from flaxmnist.core.models import *  # noqa: F403
from flaxmnist.core.models import __all__ as __all__
