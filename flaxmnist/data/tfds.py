"""Data sets prepared by TensorFlow Datasets, read without TensorFlow where possible."""

import contextlib
import hashlib
import importlib.util
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from flaxmnist.checks import UserError, did_you_mean
from flaxmnist.data.download import DownloadError, cache_dir, reachable, registered


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
      UserError: TFDS has no such set, it is not of the kind that `read` takes,
        TensorFlow is not installed, or there is no network.
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
    # Without a network TFDS would try for minutes.
    if not reachable(registered("mnist")[0].url):
        raise DownloadError(
            f"data.name={name!r} is not prepared, and there is no network"
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
    identity = f"{folder.resolve()}{(folder / 'dataset_info.json').read_text()}"
    digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
    cache = cache_dir() / "tfds" / f"{folder.parent.name}-{digest}.npz"
    # One that is missing or damaged is made again.
    damage = contextlib.suppress(OSError, ValueError, KeyError, zipfile.BadZipFile)
    with damage, np.load(cache, allow_pickle=False) as arrays:
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
    # A cache that cannot be written costs time, nothing else.
    partial = cache.with_suffix(f".{os.getpid()}.npz")
    with contextlib.suppress(OSError):
        cache.parent.mkdir(parents=True, exist_ok=True)
        try:
            np.savez(partial, *arrays)
            os.replace(partial, cache)
        finally:
            partial.unlink(missing_ok=True)
    return arrays
