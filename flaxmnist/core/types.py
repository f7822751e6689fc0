"""Types of the trees that the steps read and return."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

if TYPE_CHECKING:
    # Parameters, or another collection of a model such as ``batch_stats``, by module.
    Params = Mapping[str, "jax.Array | Params"]
    Batch = Mapping[str, jax.Array | np.ndarray]
else:  # The tests check annotations at runtime, and a step checks its batch itself.
    Params = Batch = Mapping[str, Any]
# The collections of a model beside its parameters, by name.
Collections = Mapping[str, Params]
