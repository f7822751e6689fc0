"""Data sets prepared by TensorFlow Datasets, read without TensorFlow where possible."""

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from flaxmnist.checks import UserError, did_you_mean
from flaxmnist.data.download import cache_dir


def prepared(name: str, directory: str | None) -> Path | None:
    """Returns the folder of the newest prepared `array_record` version, if any.

    Args:
      name: TFDS's name of the set.
      directory: TFDS's data folder; its default if None.
    """
    base = directory or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    folders = []
    for info in (Path(base).expanduser() / name).glob("*/dataset_info.json"):
        try:
            description = json.loads(info.read_text())
            version = tuple(int(part) for part in info.parent.name.split("."))
        except ValueError:
            continue
        if description.get("fileFormat") == "array_record":
            folders.append((version, info.parent))
    return max(folders)[1] if folders else None


def prepare(name: str, directory: str | None) -> Path:
    """Has TFDS download and prepare a set, which needs TensorFlow.

    Raises:
      UserError: TensorFlow is not installed, or TFDS has no such set or failed.
    """
    import tensorflow_datasets as tfds

    known = tfds.list_builders(with_community_datasets=False)
    if name.partition("/")[0] not in known:
        raise UserError(
            f"data.name={name!r}: TensorFlow Datasets has no such set"
            f"{did_you_mean(name, known)}"
        )
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(
            f"data.name={name!r} is not prepared, and TensorFlow Datasets needs "
            "TensorFlow to do that: pip install 'flaxmnist[tfds]'"
        )
    builder = tfds.builder(name, data_dir=directory, file_format="array_record")
    _check_features(builder.info.features, name)
    builder.download_and_prepare()
    return Path(builder.data_dir)


def _check_features(features: Any, where: Path | str) -> None:
    found = {name: features[name] for name in ("image", "label") if name in features}
    shape = getattr(found.get("image"), "shape", None)
    classes = getattr(found.get("label"), "num_classes", None)
    if shape != (28, 28, 1) or not classes or classes > 10:
        raise UserError(
            f"{where} holds images of {shape} in {classes} classes: expected "
            "(28, 28, 1) in at most 10"
        )


def read(folder: Path) -> list[np.ndarray]:
    """Returns train images, train labels, test images, test labels of a prepared set.

    The decoded arrays are cached: TFDS decodes some thousand images a second.

    Raises:
      UserError: the set is not of 28×28×1 images with at most ten labels.
    """
    size = sum(path.stat().st_size for path in folder.iterdir())
    cache = cache_dir() / "tfds" / f"{folder.parent.name}-{folder.name}-{size}.npz"
    if cache.is_file():
        with np.load(cache, allow_pickle=False) as arrays:
            return [arrays[f"arr_{index}"] for index in range(4)]
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(folder)
    _check_features(builder.info.features, folder)
    arrays = []
    for split in ("train", "test"):
        if split not in builder.info.splits:
            raise UserError(
                f"{folder} has the splits {', '.join(builder.info.splits)}: expected "
                "train and test"
            )
        source = builder.as_data_source(split)
        images = np.empty((len(source), 28, 28), np.uint8)
        labels = np.empty(len(source), np.uint8)
        for index in range(len(source)):
            example = source[index]
            images[index], labels[index] = example["image"][..., 0], example["label"]
        arrays += [images, labels]
    cache.parent.mkdir(parents=True, exist_ok=True)
    partial = cache.with_suffix(f".{os.getpid()}.npz")
    np.savez(partial, *arrays)
    os.replace(partial, cache)
    return arrays
