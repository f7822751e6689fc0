"""What a report says about a run in words: its data, its use, and its command."""

import dataclasses
import shlex

from flaxmnist import config as configs
from flaxmnist.core import mnist
from flaxmnist.rundir.description import DatasetInfo
from flaxmnist.rundir.results import Summary

# Sets of the MNIST format, and their number of test images.
_TEST_IMAGES = dict.fromkeys(("mnist", "fashion_mnist", "kmnist"), 10_000)


def banner(data: DatasetInfo) -> str | None:
    """Returns what a reader must know of the data before the results, if anything."""
    train, test = data.counts["train"], data.counts["test"]
    if data.source == "synthetic":
        return (
            "The images are synthetic: random patterns that flaxmnist generates. The "
            "results show that training works, and nothing about real images."
        )
    if data.source == "bundled":
        return (
            f"The data are a subset: {train:,} of MNIST's 60,000 training images, and "
            f"{test:,} test images. The results cannot be compared with those on MNIST."
        )
    if data.source != "arrays" and test < (whole := _TEST_IMAGES.get(data.name, 0)):
        return (
            f"The data are a subset: {test:,} of the {whole:,} test images of "
            f"{data.name}. The results cannot be compared with those on all images."
        )
    return None


def use(data: DatasetInfo) -> list[str]:
    """Returns paragraphs: what the model is for, and its limits on photographs."""
    if mnist.is_like(data.image_shape, data.class_names):
        return [
            "The model classifies images of single digits that are made as those of "
            "MNIST are: 28×28 pixels, white on black, scaled into 20×20 pixels and "
            "centred. It is for learning, for experiments and as a baseline.",
            "The accuracy in this report is not that on photographs. flaxmnist predict "
            "finds the ink of a photograph and makes such an image of it. Shadows, "
            "lines of the paper, thin strokes, touching digits and other ways of "
            "writing a digit cause mistakes that are not in this report. The model has "
            "no class for other input, which it labels as some digit; flaxmnist "
            "predict warns if an image is unlike the validation images.",
        ]
    height, width, channels = data.image_shape
    return [
        f"The model classifies images of {height}×{width} pixels with {channels} "
        f"channel{'s' if channels > 1 else ''} into the {len(data.class_names):,} "
        f"classes of {data.name}. It is for images that are made as those of the "
        "training split are.",
        "The accuracy in this report is not that on photographs of other origin: other "
        "cameras, backgrounds, sizes and positions cause mistakes that are not in this "
        "report. The model has no class for other input: it labels that as some class.",
    ]


def command(summary: Summary) -> str | None:
    """Returns the command that repeats a run; None if a program gave the data."""
    if summary.dataset.source == "arrays":
        return None
    config = configs.from_dict(summary.config)
    # "auto" depends on the network.
    if config.data.source == "auto" and summary.dataset.source == "bundled":
        data = dataclasses.replace(config.data, source="bundled")
        config = dataclasses.replace(config, data=data)
    flags = configs.flags_of(config)
    count = max(summary.devices.count, *(id + 1 for id in config.mesh.devices or (0,)))
    if summary.devices.platform == "cpu" and count > 1:
        flags.append(f"--num_cpu_devices={count}")
    return shlex.join(["python", "-m", "flaxmnist.main", *flags])
