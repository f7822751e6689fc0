"""The same networks, each as a user of the library would write it.

Every module has a class `Peer(network, batch_size, images, labels, test, variant)`:
`train(steps)` goes on where it was and returns when it is done, `evaluate()` returns
the accuracy on the test images, `predict(image)` the class of one. Images are uint8
`[count, 28, 28]`, held in memory, and shuffled anew every epoch.
"""

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
