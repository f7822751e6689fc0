"""A vision transformer with an optimizer of its own, as a configuration file.

    flaxmnist train --config examples/vit.py --workdir runs/vit
    flaxmnist train --config examples/vit.py --config.model.depth=6

Test accuracy on MNIST, seed 0, after 6 epochs: 98.15 %.

The arguments of `ViT` and `decaying_adamw` are options of the configuration.
"""

import flax.linen as nn
import jax
import optax

from flaxmnist.config import make_config
from flaxmnist.models import scale


class Block(nn.Module):
    """Attention between patches, then a dense layer for each patch."""

    heads: int
    dropout: float

    @nn.compact
    def __call__(self, x, *, train):
        """Returns the patches `[batch, patches, width]` with both parts added."""
        width = x.shape[-1]
        y = nn.MultiHeadDotProductAttention(self.heads)(nn.LayerNorm()(x))
        x = x + nn.Dropout(self.dropout, deterministic=not train)(y)
        y = nn.gelu(nn.Dense(4 * width)(nn.LayerNorm()(x)))
        return x + nn.Dropout(self.dropout, deterministic=not train)(nn.Dense(width)(y))


class ViT(nn.Module):
    """Dosovitskiy et al. (2021), "An Image is Worth 16x16 Words"; mean of the patches.

    flaxmnist fills in `num_classes` from the data.
    """

    patch: int = 7
    width: int = 64
    depth: int = 4
    heads: int = 4
    dropout: float = 0.1
    num_classes: int = 10

    @nn.compact
    def __call__(self, images, *, train):
        """Returns logits of images `[batch, height, width, channels]`."""
        x = scale(images)
        count, height, width, channels = x.shape
        rows, columns = height // self.patch, width // self.patch
        x = x[:, : rows * self.patch, : columns * self.patch]
        x = x.reshape(count, rows, self.patch, columns, self.patch, channels)
        x = x.swapaxes(2, 3).reshape(count, rows * columns, -1)
        x = nn.Dense(self.width)(x)
        place = self.param("place", nn.initializers.normal(0.02), x.shape[1:])
        x = x + place[None]
        for _ in range(self.depth):
            x = Block(self.heads, self.dropout)(x, train=train)
        return nn.Dense(self.num_classes)(nn.LayerNorm()(x).mean(axis=1))


def decaying_adamw(learning_rate, weight_decay: float = 0.05, clip: float = 1.0):
    """Returns AdamW that decays matrices only, after a limit on the gradient."""
    return optax.chain(
        optax.clip_by_global_norm(clip),
        optax.adamw(learning_rate, weight_decay=weight_decay, mask=matrices),
    )


def matrices(params):
    """Returns which parameters are neither biases nor scales of a normalization."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path[-1].key not in ("bias", "scale"), params
    )


def get_config(arg=None):
    """Returns the configuration; `arg` is the text after a colon in ``--config``."""
    return make_config(
        num_epochs=6,
        batch_size=128,
        model={"name": ViT},
        optimizer={
            "name": decaying_adamw,
            "learning_rate": 2e-3,
            "schedule": "cosine",
            "warmup": "1 epochs",
        },
    )
