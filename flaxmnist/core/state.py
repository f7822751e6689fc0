"""The state of training, initialized directly on its devices."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import Sharding

from flaxmnist import options
from flaxmnist.core import augment as augmentations
from flaxmnist.core import mnist
from flaxmnist.core.arguments import ARGUMENTS, check_hashable, check_parts
from flaxmnist.core.augment import Augmentation
from flaxmnist.core.batch import ImageShape, as_logits
from flaxmnist.core.by_value import by_value
from flaxmnist.core.layers import scale
from flaxmnist.core.losses import CROSS_ENTROPY, Loss
from flaxmnist.core.metrics import Metric, as_pairs
from flaxmnist.core.sharding import Layout, abstract, as_layout
from flaxmnist.core.types import Collections, Params
from flaxmnist.errors import UserError


@struct.dataclass
class TrainState:
    """Everything that a step reads and writes, as one pytree.

    Attributes:
      step: int32 `[]`, number of updates.
      params: the model's parameters.
      opt_state: the optimizer's state.
      model_state: the model's other collections, such as ``batch_stats``.
      key: PRNG key of the run; each step folds its own number into it.
      model: the linen module (static).
      tx: the optimizer (static). An equal one does not compile again; see
        :func:`flaxmnist.core.by_value.by_value`.
      layout: how a step splits the new state over devices (static); None leaves that to
        the compiler.
      ema: exponential moving average of the parameters; None without `ema_decay`.
      ema_decay: decay of that average per update (static).
      grad_accumulation: number of micro-batches per batch (static); if 1, see
        :func:`flaxmnist.core.objective.num_micro_batches`.
      augment: distorts the training images; see :mod:`flaxmnist.core.augment` (static).
      augment_until: step from which on the images are not distorted (static); None:
        all are.
      image_shape: height, width and channels of an image (static).
      num_classes: number of logits of the model (static).
      loss: what training minimizes (static); see :mod:`flaxmnist.core.losses`.
      metrics: further metrics by name (static); see :mod:`flaxmnist.core.metrics`.
    """

    step: jax.Array
    params: Params
    opt_state: optax.OptState
    model_state: Collections
    key: jax.Array
    model: nn.Module = struct.field(pytree_node=False)
    tx: optax.GradientTransformation = struct.field(pytree_node=False)
    layout: Layout | None = struct.field(pytree_node=False, default=None)
    ema: Params | None = None
    ema_decay: float | None = struct.field(pytree_node=False, default=None)
    grad_accumulation: int = struct.field(pytree_node=False, default=1)
    augment: Augmentation | None = struct.field(pytree_node=False, default=None)
    augment_until: int | None = struct.field(pytree_node=False, default=None)
    image_shape: ImageShape = struct.field(pytree_node=False, default=mnist.IMAGE_SHAPE)
    num_classes: int = struct.field(pytree_node=False, default=mnist.NUM_CLASSES)
    loss: Loss = struct.field(pytree_node=False, default=CROSS_ENTROPY)
    metrics: tuple[tuple[str, Metric], ...] = struct.field(
        pytree_node=False, default=()
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "tx", by_value(self.tx))

    def __repr__(self) -> str:
        leaves = jax.tree.leaves(self.params)
        count = sum(getattr(leaf, "size", 0) for leaf in leaves)
        try:
            step = f"step {int(self.step):,}"
        except (TypeError, RuntimeError):  # Abstract, or donated.
            step = "without values"
        return f"TrainState({type(self.model).__name__}, {count:,} parameters, {step})"

    @property
    def eval_params(self) -> Params:
        """The parameters for evaluation, prediction and export: `ema` unless None."""
        return self.params if self.ema is None else self.ema

    def averaged(self, params: Params) -> Params | None:
        """Returns `ema` after an update to `params`.

        Bias-corrected as in Adam (Kingma and Ba, 2015): after the first update the
        average equals the parameters; the initial values contribute nothing.
        """
        if self.ema_decay is None or self.ema is None:
            return None
        # (1 - decay) / (1 - decay^updates), exact also where decay is close to one.
        forgotten = -jnp.expm1((self.step + 1) * math.log(self.ema_decay))
        share = (1 - self.ema_decay) / forgotten
        average: Params = optax.incremental_update(params, self.ema, share)
        return average


def _init(
    model: nn.Module,
    tx: optax.GradientTransformation,
    seed: int | jax.Array,
    sharding: Sharding | Layout | None,
    *,
    ema_decay: float | None = None,
    grad_accumulation: int = 1,
    image_shape: ImageShape = mnist.IMAGE_SHAPE,
    augment: Augmentation | None = None,
    augment_until: int | None = None,
    loss: Loss = CROSS_ENTROPY,
    metrics: tuple[tuple[str, Metric], ...] = (),
) -> TrainState:
    init_key, key = jax.random.split(jax.random.key(seed))
    images = jnp.zeros((1, *image_shape), jnp.uint8)
    logits, variables = model.init_with_output(init_key, images, train=False)
    num_classes = as_logits(logits, 1, num_classes=None).shape[1]
    variables = dict(variables)
    if "params" not in variables:
        raise UserError(
            f"model={type(model).__name__} has no parameters; expected a module with "
            "layers to train"
        )
    params = variables.pop("params")
    if augment is not None:  # Rejects one that does not fit the images.
        augmentations.apply(augment, key, scale(images))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=tx.init(params),
        model_state=variables,
        key=key,
        model=model,
        tx=tx,
        layout=as_layout(sharding),
        ema=None if ema_decay is None else params,
        ema_decay=ema_decay,
        grad_accumulation=grad_accumulation,
        image_shape=image_shape,
        num_classes=num_classes,
        augment=augment,
        augment_until=augment_until,
        loss=loss,
        metrics=metrics,
    )


def abstract_state(
    model: nn.Module,
    tx: optax.GradientTransformation,
    sharding: Sharding | Layout | None = None,
    **options: Any,
) -> TrainState:
    """Returns the shapes, dtypes and shardings of a state without computing it.

    The options are those of :func:`create_state`.
    """
    _, state = initializer(model, tx, sharding, **options)
    return state


def create_state(
    model: nn.Module,
    tx: optax.GradientTransformation,
    seed: int = 0,
    sharding: Sharding | Layout | None = None,
    *,
    ema_decay: float | None = None,
    grad_accumulation: int = 1,
    image_shape: ImageShape = mnist.IMAGE_SHAPE,
    augment: Augmentation | None = None,
    augment_until: int | None = None,
    loss: Loss = CROSS_ENTROPY,
    metrics: Mapping[str, Metric] | Sequence[tuple[str, Metric]] = (),
) -> TrainState:
    """Returns the state before the first step, initialized straight into `sharding`.

    Args:
      model: maps `[batch, height, width, channels]` images to `[batch, classes]`
        logits; takes `train: bool`. While training, `make_rng` returns keys for any
        name, which differ in each step.
      tx: any optax transformation.
      seed: seeds the parameters and every later random draw.
      sharding: one for all arrays, or a layout, which the steps preserve; the default
        device if None.
      ema_decay: in (0, 1), to average the parameters over the updates and evaluate with
        the average, which covers about the last 1 / (1 - ema_decay) updates.
      grad_accumulation: number of micro-batches per batch. Only the activations of one
        are in memory at a time; the update is that of the whole batch, except for batch
        normalization. A step on a CPU may divide a large batch if this is 1.
      image_shape: height, width and channels of an image.
      augment: distorts the images of every training step, such as `Augment(rotate=10)`;
        see :mod:`flaxmnist.core.augment`.
      augment_until: step from which on the images are not distorted; None: all are.
      loss: from logits `[batch, classes]` and labels, integers `[batch]` or
        distributions `[batch, classes]`, to losses `[batch]`.
      metrics: further metrics by name: functions of logits `[batch, classes]` and
        integer labels `[batch]` that return a value per example.

    Raises:
      UserError: an argument has an invalid value or type.
    """
    number = options.check("", {"seed": seed}, ARGUMENTS)["seed"]
    init, _ = initializer(
        model,
        tx,
        sharding,
        ema_decay=ema_decay,
        grad_accumulation=grad_accumulation,
        image_shape=image_shape,
        augment=augment,
        augment_until=augment_until,
        loss=loss,
        metrics=metrics,
    )
    state: TrainState = init(np.uint32(number))
    return state


def initializer(
    model: nn.Module,
    tx: optax.GradientTransformation,
    sharding: Sharding | Layout | None = None,
    *,
    loss: Loss = CROSS_ENTROPY,
    metrics: Mapping[str, Metric] | Sequence[tuple[str, Metric]] = (),
    **given: Any,
) -> tuple[Callable[[np.uint32], TrainState], TrainState]:
    """Returns a jitted function from a seed to a state, and its abstract result.

    The arguments are those of :func:`create_state`; equal ones share a function.
    """
    check_parts(model, tx, sharding, loss)
    checked = options.check("", given, ARGUMENTS)
    tx, further = by_value(tx), as_pairs(metrics)
    parts = {"model": model, "tx": tx, "sharding": sharding, "loss": loss}
    parts["augment"] = checked.get("augment")
    check_hashable(parts | {f"metrics[{name!r}]": one for name, one in further})
    if isinstance(sharding, Layout):
        image_shape = checked.get("image_shape", mnist.IMAGE_SHAPE)
        sharding = sharding.for_model(model, image_shape)
    return _initializer(
        model,
        tx,
        sharding,
        loss=loss,
        metrics=further,
        **checked,
    )


@functools.lru_cache(maxsize=8)
def _initializer(
    model: nn.Module,
    tx: optax.GradientTransformation,
    sharding: Sharding | Layout | None,
    **options: Any,
) -> tuple[Callable[[np.uint32], TrainState], TrainState]:
    # The seed is an argument of the compiled program, which so serves every seed.
    init = functools.partial(_init, model, tx, sharding=sharding, **options)
    like = abstract(functools.partial(init, 0), sharding)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, like)
    return jax.jit(init, out_shardings=shardings), like
