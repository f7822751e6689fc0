"""Types of the trees that the steps read and return."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax

if TYPE_CHECKING:
    # Parameters, or another collection of a model such as ``batch_stats``, by module.
    Params = Mapping[str, "jax.Array | Params"]
else:  # What the tests' runtime checks of annotations can evaluate.
    Params = Mapping[str, Any]
# The collections of a model beside its parameters, by name.
Collections = Mapping[str, Params]
Batch = Mapping[str, jax.Array]
