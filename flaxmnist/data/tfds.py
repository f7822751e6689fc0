"""Data sets prepared by TensorFlow Datasets (TFDS), read without TensorFlow."""

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
# Maximum size in bytes of a JSON file.
_MAX_JSON = 1 << 24
_INVALID = (OSError, ValueError, LookupError, TypeError, RecursionError, UserError)


def prepared(name: str, directory: str | None) -> Path | None:
    """Returns the folder of the newest prepared `array_record` version, if any.

    Args:
      name: name of the data set in TFDS.
      directory: data directory of TFDS; TFDS_DATA_DIR or its default if None.
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
    """Downloads and prepares a data set with TFDS, which requires TensorFlow.

    Raises:
      UserError: the data set is unknown or has other images than 28×28×1, TensorFlow is
        not installed, or the network cannot be reached.
    """
    try:
        import tensorflow_datasets as tfds

        known = tfds.list_builders(with_community_datasets=False)
    # Protobuf raises its own type of error if it is older than the generated code.
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"data.name={shown(name)} is not prepared, and TensorFlow Datasets cannot "
            f"be imported ({shown(reason)}). If Protobuf is too old: "
            "pip install 'tensorflow-metadata<1.18'"
        ) from error
    if name.partition("/")[0] not in known:
        raise UserError(
            f"data.name={shown(name)} is unknown to TensorFlow Datasets"
            f"{did_you_mean(name, known)}"
        )
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(
            f"data.name={shown(name)} is not prepared, and preparing it requires "
            "TensorFlow: pip install 'flaxmnist[tfds]'"
        )
    # Without a network TFDS would retry for minutes.
    if not reachable(registered("mnist")[0].url):
        raise DownloadError(
            f"data.name={shown(name)} is not prepared, and the network cannot be "
            "reached. Connect to a network"
        )
    builder = tfds.builder(name, data_dir=directory, file_format="array_record")
    _check_features(builder.info.features, name)
    builder.download_and_prepare()
    return Path(builder.data_dir)


def _check_features(features: Any, name: str) -> None:
    found = {key: features[key] for key in ("image", "label") if key in features}
    shape = getattr(found.get("image"), "shape", None)
    classes = getattr(found.get("label"), "num_classes", None)
    if shape != (28, 28, 1) or not classes or classes > 10:
        raise UserError(
            f"data.name={shown(name)} has images of shape {shape} in {classes} "
            "classes; expected shape (28, 28, 1) and at most 10 classes"
        )


def read(folder: Path) -> list[np.ndarray]:
    """Returns train images, train labels, test images, test labels of a prepared set.

    The first call decodes the examples, some thousand per second, into IDX files in
    the cache. Later calls read these files. The description of the features in the
    folder is not used, because it may name Python code to import.

    Raises:
      UserError: an image is not 28×28×1, a label is above 9, the data set is damaged,
        or the cache cannot be written.
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
                # Another process may have written these files by now, and be reading
                # them.
                if arrays := _cached(cache, source):
                    return arrays
                shutil.rmtree(cache, ignore_errors=True)
                os.rename(partial, cache)
                return idx.read_all(idx.find(cache))
    except OSError as error:
        raise UserError(
            f"{cache.parent} cannot be written ({error.strerror}). Set "
            "FLAXMNIST_CACHE_DIR to a writable directory"
        ) from None


def _cached(cache: Path, source: list[list[Any]]) -> list[np.ndarray] | None:
    """Returns the arrays cached in a directory; None unless they are from `source`."""
    try:
        arrays = idx.read_all(idx.find(cache))
        record = json.loads(read_bytes(cache / _RECORD, _MAX_JSON))
    except _INVALID:
        return None
    return arrays if record == _record(source, arrays) else None


def _identity(folder: Path) -> list[list[Any]]:
    """Returns the name, size and modification time of each file of examples."""
    files = []
    for path in sorted(folder.glob("*.array_record-*")):
        status = path.stat()
        files.append([path.name, status.st_size, status.st_mtime_ns])
    return files


def _record(source: list[list[Any]], arrays: list[np.ndarray]) -> dict[str, Any]:
    """Returns the record in the cache: the source and checksums of the arrays."""
    return {"source": source, "crc32": [zlib.crc32(array.data) for array in arrays]}


def _examples(folder: Path, split: str) -> Iterator[tuple[np.ndarray, int]]:
    """Yields image, uint8 `[28, 28]`, and label of each example of a split."""
    from array_record.python.array_record_data_source import ArrayRecordDataSource
    from tensorflow_datasets.proto import tf_example_pb2

    paths = sorted(folder.glob(f"*-{split}.array_record-*-of-*"))
    if not paths or not paths[0].name.endswith(f"-of-{len(paths):05d}"):
        raise UserError(
            f"{shown(str(folder))} contains {len(paths)} files of the split {split}; "
            "expected all files of train and test. Prepare the data set again"
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
                        f"{folder} contains an image of size {image.size} and mode "
                        f"{image.mode} with label {label}; expected size (28, 28), "
                        "mode L and a label from 0 to 9"
                    )
                yield np.asarray(image), label
    except UserError:
        raise
    # Each reader raises its own type of error for damaged data.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"the split {split} in {folder} cannot be read ({reason[:160]}). "
            "Prepare the data set again"
        ) from None
