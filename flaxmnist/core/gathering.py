"""The gather of the images of a batch, by one thread of a CPU or by several."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int, Shaped

# XLA divides operations of at least this many bytes.
MIN_DIVIDED_BYTES = 512 << 10
# Whether a block of `on_one_thread` is being traced.
_one_thread: ContextVar[bool] = ContextVar("_one_thread", default=False)


@contextlib.contextmanager
def on_one_thread(wanted: bool) -> Iterator[None]:
    """Lets one thread gather the rows of small batches on CPU, if it is wanted.

    If no other operation of a step is divided, waking a second thread takes longer than
    the gather. XLA divides even a small gather, because it estimates its cost from the
    size of the whole array. It does not divide a gather inside a loop that stores the
    result in place. A function under `jax.jit` keeps the form that is traced first.
    """
    token = _one_thread.set(wanted)
    try:
        yield
    finally:
        _one_thread.reset(token)


def gather_rows(
    array: Shaped[Array, "count width"], rows: Int[Array, " batch"]
) -> Shaped[Array, "batch width"]:
    """Returns `array[rows]`; see :func:`on_one_thread`."""
    batch, width = len(rows), array.shape[1]
    if not _one_thread.get() or batch * width * array.itemsize >= MIN_DIVIDED_BYTES:
        return array[rows]
    halves = jnp.pad(rows, (0, batch % 2)).reshape(2, -1)
    gathered: Array = lax.map(lambda half: array[half], halves)
    return gathered.reshape(-1, width)[:batch]
