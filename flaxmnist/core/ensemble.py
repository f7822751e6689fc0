"""Means of several predictions: of several models, or of shifted images."""

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
        of the members; see :mod:`flaxmnist.core.calibration`.

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


# Pixels by which the copies of an image are shifted, down and to the right.
SHIFTS = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))


class Translated(nn.Module):
    """The mean of the logits of a model over shifted copies of each image.

    It is similar to the multi-crop evaluation of Jordan, 2024, "94% on CIFAR-10 in 3.29
    Seconds on a Single GPU". `SHIFTS` has the copies. Pixels from outside of the image
    are 0, as in the option `augment.crop`. Its variables are those of `member`.

    Attributes:
      member: the model.
    """

    member: nn.Module

    def __call__(self, images: Images, *, train: bool = False) -> Logits:
        """Returns the mean logits.

        Raises:
          ValueError: `train` is true; the model is trained on plain images.
        """
        if train:
            raise ValueError("a mean over shifted copies is not trained")
        member, shape = self.member.clone(parent=None, name=None), images.shape
        padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))

        def predict(shift: jax.Array) -> Logits:
            start = (0, 1 - shift[0], 1 - shift[1], 0)
            shifted = jax.lax.dynamic_slice(padded, start, shape)
            found: Any = member.apply(dict(self.variables), shifted, train=False)
            logits: Logits = found.astype(jnp.float32)
            return logits

        mean: Logits = jax.lax.map(predict, jnp.array(SHIFTS)).mean(axis=0)
        return mean


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
    if isinstance(model, Translated):
        return f"{name_of(model.member, name)}, mean over {len(SHIFTS)} shifted copies"
    return f"ensemble of {model.size} × {name}" if isinstance(model, Ensemble) else name
