"""The four tutorial systems, step by step beside their graphs in TensorFlow 1.

pip install -e '.[tfds]' && python -m benchmarks.tensorflow_parity

Both start from the same weights and see the same 20 batches, without dropout. The
losses must agree within `TOLERANCE`, relatively. Gradient descent differs by the order
of sums alone, some 1e-7; Adam's first updates are the sign of each gradient, so that
where one is rounding noise the two differ by a whole learning rate.
"""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import numpy as np
import tensorflow

import flaxmnist
from benchmarks.mnist import load_mnist
from flaxmnist import config as configs
from flaxmnist.core import models, optim
from flaxmnist.data import epoch_order

tf = tensorflow.compat.v1
STEPS = 20
TOLERANCE = {"sgd": 1e-6, "adam": 5e-4}
SYSTEMS = ("softmax:beginners", "mlp:mechanics", "cnn:layers", "cnn:deep")
OPTIMIZERS = {"sgd": tf.train.GradientDescentOptimizer, "adam": tf.train.AdamOptimizer}


def tensorflow_losses(config, params, batches):
    """Returns the losses of the tutorial's graph, float32 `[steps]`."""
    with tf.Graph().as_default(), tf.Session() as session:
        x = tf.placeholder(tf.float32, [None, 784])
        y = tf.placeholder(tf.int32, [None])
        weights = {
            layer: {name: tf.Variable(value) for name, value in both.items()}
            for layer, both in params.items()
        }
        h = tf.reshape(x, [-1, 28, 28, 1]) if config.model.name == "cnn" else x
        *hidden, last = weights.items()
        for layer, w in hidden:
            if layer.startswith("Conv"):
                h = tf.nn.conv2d(h, w["kernel"], strides=[1, 1, 1, 1], padding="SAME")
                h = tf.nn.relu(h + w["bias"])
                h = tf.nn.max_pool(h, [1, 2, 2, 1], [1, 2, 2, 1], padding="SAME")
            else:
                h = tf.reshape(h, [-1, w["kernel"].shape[0]])
                h = tf.nn.relu(tf.matmul(h, w["kernel"]) + w["bias"])
        logits = tf.matmul(h, last[1]["kernel"]) + last[1]["bias"]
        loss = tf.reduce_mean(
            tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=logits)
        )
        optimizer = OPTIMIZERS[config.optimizer.name](config.optimizer.learning_rate)
        update = optimizer.minimize(loss)
        session.run(tf.global_variables_initializer())
        return [
            session.run([loss, update], {x: image, y: label})[0]
            for image, label in batches
        ]


def flaxmnist_losses(state, batches):
    """Returns the losses of `train_step`, float `[steps]`."""
    losses = []
    for image, label in batches:
        state, metrics = flaxmnist.train_step(state, {"image": image, "label": label})
        losses.append(metrics.compute()["loss"])
    return losses


def main() -> int:
    """Returns the exit code: 1 if a system's losses differ."""
    train = load_mnist().train
    failed = False
    print(f"{'system':<20}{'first loss':>12}{'last loss':>12}{'difference':>12}")
    for system in SYSTEMS:
        config = configs.resolve(configs.load(system))
        size = config.batch_size
        rows = epoch_order(0, 0, len(train))[: STEPS * size].reshape(STEPS, size)
        pixels = train.images.reshape(-1, 784).astype(np.float32) / 255
        batches = [(pixels[row], train.labels[row].astype(np.int32)) for row in rows]
        options = configs.as_dict(config.model)
        if "dropout_rate" in options:
            options["dropout_rate"] = 0.0
        optimizer = configs.as_dict(config.optimizer)
        del optimizer["warmup"]
        tx, _ = optim.build(**optimizer, total_steps=STEPS, steps_per_epoch=STEPS)
        state = flaxmnist.create_state(models.build(**options), tx, seed=0)
        theirs = tensorflow_losses(config, jax.device_get(state.params), batches)
        ours = flaxmnist_losses(state, batches)
        difference = np.max(np.abs(np.divide(ours, theirs) - 1))
        failed |= bool(difference > TOLERANCE[config.optimizer.name])
        print(f"{system:<20}{ours[0]:>12.6f}{ours[-1]:>12.6f}{difference:>12.1e}")
    print("they differ" if failed else "they agree")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
