"""Trains a small CNN on MNIST in one page: JAX, Flax, optax and flaxmnist's steps.

    python examples/minimal.py [--seed 0] [--steps N]

Test accuracy 99.23 % (mean of seeds 0, 1, 2: 99.32 %, 99.18 %, 99.20 %) after 8 epochs,
in 37 s (seed 0, 2 idle cores of an AMD EPYC, jax 0.10.2). The settings were chosen on
the validation split; each run reads the test split once.

The data comes from FLAXMNIST_DATA_DIR, the cache, or a download. Without a network, the
example trains on the bundled 4,000 images, reports that, and is less accurate.
"""

import argparse

import numpy as np
import optax

import flaxmnist
from flaxmnist.data import epoch_order

EPOCHS, BATCH_SIZE, LEARNING_RATE = 8, 128, 3e-3


def shifted_batches(split, num_steps, seed):
    """Yields shuffled batches, each moved by up to two pixels."""
    rng = np.random.default_rng(seed)
    steps_per_epoch = len(split) // BATCH_SIZE
    for step in range(num_steps):
        epoch, index = divmod(step, steps_per_epoch)
        if index == 0:
            order = epoch_order(seed, epoch, len(split))
        rows = order[index * BATCH_SIZE : (index + 1) * BATCH_SIZE]
        # Digits have a black border, so the pixels that wrap around are black.
        images = np.roll(split.images[rows], rng.integers(-2, 3, 2), axis=(1, 2))
        yield {"image": images, "label": split.labels[rows]}


def evaluate(state, split):
    """Returns loss, accuracy and count over all examples of a split."""
    metrics = flaxmnist.Metrics.empty()
    for rows in np.array_split(np.arange(len(split)), max(1, len(split) // 1_000)):
        batch = {"image": split.images[rows], "label": split.labels[rows]}
        metrics = metrics.merge(flaxmnist.eval_step(state, batch))
    return metrics.compute()


def main(steps=None, seed=0):
    """Trains, evaluates on the test split and returns the result."""
    data = flaxmnist.load()
    if data.warning:
        print(data.warning)
    steps = steps or EPOCHS * (len(data.train) // BATCH_SIZE)
    schedule = optax.cosine_onecycle_schedule(max(steps, 4), LEARNING_RATE)
    # Strided convolutions need no pooling. Any linen module can take this place if its
    # `__call__(images, *, train)` returns logits `[batch, 10]`.
    model = flaxmnist.CNN(
        features=(32, 64),
        kernel_size=3,
        strides=2,
        pool=None,
        hidden=128,
        dropout_rate=0.3,
    )
    state = flaxmnist.create_state(model, optax.adam(schedule), seed)
    for step, batch in enumerate(shifted_batches(data.train, steps, seed), 1):
        state, metrics = flaxmnist.train_step(state, batch)
        if step % 100 == 0:
            print(f"step {step}/{steps}  loss {metrics.compute()['loss']:.4f}")
    result = evaluate(state, data.test)
    print(f"test accuracy {result['accuracy']:.2%} of {result['count']:,} images")
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, help="default: 8 epochs")
    parser.add_argument("--seed", type=int, default=0)
    main(**vars(parser.parse_args()))
