"""Ensembles: several models of one architecture that predict together."""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxmnist.core.layers import Images, Logits


class Ensemble(nn.Module):
    """The mean of the probabilities of several models of one architecture.

    Its variables are those of `member`, each with a leading axis of length `size`; see
    :func:`stack`. The members run one after the other, because a CPU convolves with
    several sets of kernels at once (`jax.vmap`) several times slower.

    Attributes:
      member: the architecture.
      size: number of models.
    """

    member: nn.Module
    size: int

    def __call__(self, images: Images, *, train: bool = False) -> Logits:
        """Returns logits of the mean probabilities.

        A constant per image is added, so that their energy is the mean of the energies
        of the members; see :mod:`flaxmnist.core.energy`.

        Raises:
          ValueError: `train` is true; the members are trained one by one.
        """
        if train:
            raise ValueError("an ensemble is not trained; train its members")
        member = self.member.clone(parent=None, name=None)

        def predict(variables: Any) -> tuple[Logits, jax.Array]:
            found: Any = member.apply(variables, images, train=False)
            logits = found.astype(jnp.float32)
            total = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
            return logits - total, total

        found, totals = jax.lax.map(predict, dict(self.variables))
        mean = jax.nn.logsumexp(found, axis=0) - math.log(self.size)
        shifted: Logits = mean + totals.mean(axis=0)
        return shifted


def stack(trees: Sequence[Any]) -> Any:
    """Returns one tree whose leaves are those of `trees`, stacked on a new first axis.

    Args:
      trees: of equal structures, shapes and dtypes.
    """
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def member_of(tree: Any, index: int) -> Any:
    """Returns one of the trees that :func:`stack` stacked."""
    return jax.tree.map(lambda leaf: leaf[index], tree)


def name_of(model: nn.Module, name: str) -> str:
    """Returns the name of a model for people, such as ``"ensemble of 8 × cnn"``."""
    return f"ensemble of {model.size} × {name}" if isinstance(model, Ensemble) else name
