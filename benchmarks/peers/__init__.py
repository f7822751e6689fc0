"""The same networks, each as a user of the library would write it.

Every module has a class `Peer(network, batch_size, images, labels, test, variant)`;
some take a dtype, too:
`train(steps)` goes on where it was and returns when it is done, `evaluate()` returns
the accuracy on the test images, `predict(image)` the class of one. Images are uint8
`[count, 28, 28]`, held in memory, and shuffled anew every epoch.
"""

import numpy as np

# Optimizer and learning rate of each: the tutorials', and Adam's usual one.
RECIPES = {
    "softmax": ("sgd", 0.5),
    "mlp": ("sgd", 0.01),
    "cnn": ("adam", 1e-4),
    "modern": ("adam", 1e-3),
}
MODERN = (32, 64, 128)
# Images at once in evaluation: flaxmnist's own default.
EVAL_BATCH = 200


def shuffled(images, labels, batch_size):
    """Yields batches without end, shuffled anew every epoch; drops the remainder."""
    rng = np.random.default_rng(0)
    while True:
        order = rng.permutation(len(labels))
        for start in range(0, len(order) - batch_size + 1, batch_size):
            rows = order[start : start + batch_size]
            yield images[rows], labels[rows]
