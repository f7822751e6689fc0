"""Keras 3 on TensorFlow, in a `tf.function`; variants "function" and "xla"."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from benchmarks.peers import EVAL_BATCH, MODERN, RECIPES


def network_of(name):
    """Returns the network, for `[batch, 28, 28, 1]`."""
    model = keras.Sequential([keras.Input((28, 28, 1))])
    modern = name == "modern"
    if name in ("cnn", "modern"):
        for features in MODERN if modern else (32, 64):
            model.add(layers.Conv2D(features, 3 if modern else 5, padding="same"))
            if modern:
                model.add(layers.BatchNormalization())
            model.add(layers.ReLU())
            model.add(layers.MaxPool2D(2))
    model.add(layers.Flatten())
    for width in {"mlp": (128, 32), "cnn": (1024,)}.get(name, ()):
        model.add(layers.Dense(width, activation="relu"))
    if name == "cnn":
        model.add(layers.Dropout(0.5))
    model.add(layers.Dense(10))
    return model


class Peer:
    """See :mod:`benchmarks.peers`."""

    def __init__(self, network, batch_size, images, labels, test, variant):
        keras.utils.set_random_seed(0)
        self.images = tf.constant(images[..., None])
        self.labels = tf.constant(labels.astype(np.int32))
        self.test, self.batch_size = test, batch_size
        self.model = network_of(network)
        name, rate = RECIPES[network]
        make = {"sgd": keras.optimizers.SGD, "adam": keras.optimizers.Adam}[name]
        optimizer = make(rate)
        optimizer.build(self.model.trainable_variables)
        xla = variant == "xla"

        @tf.function(jit_compile=xla)
        def step(rows):
            pixels = tf.cast(tf.gather(self.images, rows), tf.float32) / 255
            with tf.GradientTape() as tape:
                logits = self.model(pixels, training=True)
                loss = tf.reduce_mean(
                    tf.nn.sparse_softmax_cross_entropy_with_logits(
                        labels=tf.gather(self.labels, rows), logits=logits
                    )
                )
            variables = self.model.trainable_variables
            optimizer.apply(tape.gradient(loss, variables), variables)
            return loss

        @tf.function(jit_compile=xla)
        def classes(images):
            pixels = tf.cast(images, tf.float32) / 255
            return tf.argmax(self.model(pixels, training=False), axis=-1)

        self.step, self.classes = step, classes
        self.rng, self.rows = np.random.default_rng(0), np.array([], np.int32)

    def train(self, steps):
        """Makes `steps` updates."""
        for _ in range(steps):
            if len(self.rows) < self.batch_size:
                order = self.rng.permutation(len(self.labels)).astype(np.int32)
                self.rows = order
            rows, self.rows = np.split(self.rows, [self.batch_size])
            loss = self.step(tf.constant(rows))
        loss.numpy()

    def evaluate(self):
        """Returns the accuracy on the test images."""
        images, labels = self.test
        batches = np.split(images[..., None], len(images) // EVAL_BATCH)
        found = [self.classes(tf.constant(batch)).numpy() for batch in batches]
        return float(np.mean(np.concatenate(found) == labels))

    def predict(self, image):
        """Returns the class of an image."""
        return int(self.classes(tf.constant(image[None, ..., None]))[0])
