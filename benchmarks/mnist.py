"""MNIST, for benchmarks that must not measure the subset of it."""

from flaxmnist.data import Dataset, load


def load_mnist() -> Dataset:
    """Returns MNIST; ends the program if only the bundled subset is found."""
    mnist = load("mnist")
    if mnist.warning:
        raise SystemExit(mnist.warning)
    return mnist
