"""Data sets prepared by TensorFlow Datasets, read without TensorFlow where possible."""

import hashlib
import importlib.util
import io
import json
import os
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flaxmnist.data import idx
from flaxmnist.data.download import cache_dir, reachable, registered
from flaxmnist.errors import DownloadError, UserError, did_you_mean, shown
from flaxmnist.runtime.files import locked, open_regular, partial_folder, read_bytes

_RECORD = "source.json"
# Bytes of a description in JSON.
_MAX_JSON = 1 << 24
_INVALID = (OSError, ValueError, LookupError, TypeError, RecursionError, UserError)


def prepared(name: str, directory: str | None) -> Path | None:
    """Returns the folder of the newest prepared `array_record` version, if any.

    Args:
      name: TFDS's name of the set.
      directory: TFDS's data folder; its default if None.
    """
    base = directory or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    folders = []
    for info in Path(os.path.expanduser(base), name).glob("*/dataset_info.json"):
        try:
            description = json.loads(read_bytes(info, _MAX_JSON))
            version = tuple(int(part) for part in info.parent.name.split("."))
            if description["fileFormat"] == "array_record":
                folders.append((version, info.parent))
        except _INVALID:
            continue
    return max(folders)[1] if folders else None


def prepare(name: str, directory: str | None) -> Path:
    """Has TFDS download and prepare a set, which needs TensorFlow.

    Raises:
      UserError: TFDS has no such set, it is not of the kind that `read` takes,
        TensorFlow is not installed, or there is no network.
    """
    try:
        import tensorflow_datasets as tfds

        known = tfds.list_builders(with_community_datasets=False)
    # Protobuf raises an error of its own for generated code newer than itself.
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"data.name={shown(name)} is not prepared, and TensorFlow Datasets cannot "
            f"be imported ({shown(reason)}); where Protobuf is too old: "
            "pip install 'tensorflow-metadata<1.18'"
        ) from error
    if name.partition("/")[0] not in known:
        raise UserError(
            f"data.name={shown(name)}: TensorFlow Datasets has no such set"
            f"{did_you_mean(name, known)}"
        )
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(
            f"data.name={shown(name)} is not prepared, and TensorFlow Datasets needs "
            "TensorFlow to do that: pip install 'flaxmnist[tfds]'"
        )
    # Without a network TFDS would try for minutes.
    if not reachable(registered("mnist")[0].url):
        raise DownloadError(
            f"data.name={shown(name)} is not prepared, and there is no network"
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

    They are decoded into IDX files in the cache, some thousand images per second, and
    read from there. The features that the folder describes are not used: nothing of
    them is imported or trusted.

    Raises:
      UserError: the set does not have 28×28×1 images with at most ten labels, it is
        damaged, or the cache cannot be written.
    """
    digest = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    cache = cache_dir() / "tfds" / f"{folder.parent.name}-{digest}"
    source = _identity(folder)
    if arrays := _cached(cache, source):
        return arrays
    try:
        with partial_folder(cache.parent) as partial:
            for split, stem in (("train", "train"), ("test", "t10k")):
                idx.write(partial, stem, _examples(folder, split))
            arrays = idx.read_all(idx.find(partial))
            record = json.dumps(_record(source, arrays))
            (partial / _RECORD).write_text(record, encoding="utf-8")
            with locked(cache.parent):
                # Another process may have been faster, and may be reading its files.
                if arrays := _cached(cache, source):
                    return arrays
                shutil.rmtree(cache, ignore_errors=True)
                os.rename(partial, cache)
                return idx.read_all(idx.find(cache))
    except OSError as error:
        raise UserError(
            f"{cache.parent} cannot be written ({error.strerror}); set "
            "FLAXMNIST_CACHE_DIR to a directory that can"
        ) from None


def _cached(cache: Path, source: list[list[Any]]) -> list[np.ndarray] | None:
    """Returns the arrays in a directory of the cache; None if they are not `source`."""
    try:
        arrays = idx.read_all(idx.find(cache))
        record = json.loads(read_bytes(cache / _RECORD, _MAX_JSON))
    except _INVALID:
        return None
    return arrays if record == _record(source, arrays) else None


def _identity(folder: Path) -> list[list[Any]]:
    """Returns name, size and time of change of each file of examples."""
    files = []
    for path in sorted(folder.glob("*.array_record-*")):
        status = path.stat()
        files.append([path.name, status.st_size, status.st_mtime_ns])
    return files


def _record(source: list[list[Any]], arrays: list[np.ndarray]) -> dict[str, Any]:
    """Returns what the cache says of itself: its source, and its checksums."""
    return {"source": source, "crc32": [zlib.crc32(array.data) for array in arrays]}


def _examples(folder: Path, split: str) -> Iterator[tuple[np.ndarray, int]]:
    """Yields image, uint8 `[28, 28]`, and label of each example of a split."""
    from array_record.python.array_record_data_source import ArrayRecordDataSource
    from tensorflow_datasets.proto import tf_example_pb2

    paths = sorted(folder.glob(f"*-{split}.array_record-*-of-*"))
    if not paths or not paths[0].name.endswith(f"-of-{len(paths):05d}"):
        raise UserError(
            f"{shown(str(folder))} holds {len(paths)} files of the split {split}; "
            "expected all of train and test. Prepare it again"
        )
    try:
        for path in paths:
            with open_regular(path, idx.MAX_BYTES):
                pass
        for record in ArrayRecordDataSource(paths):
            feature = tf_example_pb2.Example.FromString(record).features.feature
            file = io.BytesIO(feature["image"].bytes_list.value[0])
            label = feature["label"].int64_list.value[0]
            with Image.open(file, formats=("PNG", "JPEG")) as image:
                if image.size != (28, 28) or image.mode != "L" or not 0 <= label < 10:
                    raise UserError(
                        f"{folder} holds an image of {image.size}, {image.mode}, with "
                        f"the label {label}: expected (28, 28), L, and 0 to 9"
                    )
                yield np.asarray(image), label
    except UserError:
        raise
    # Of what is damaged, each reader raises its own.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"the split {split} in {folder} cannot be read ({reason[:160]}): prepare "
            "it again"
        ) from None
