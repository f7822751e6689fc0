"""Data sets prepared by TensorFlow Datasets (TFDS), read without TensorFlow."""

import functools
import importlib.util
import os
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flaxmnist.data import download, emnist
from flaxmnist.data.encoded import Example, decoders
from flaxmnist.data.raw import Raw
from flaxmnist.data.splits import SPLITS
from flaxmnist.errors import DownloadError, UserError, did_you_mean, shown
from flaxmnist.runtime.files import parse_json, read_bytes

# Maximum size in bytes of a JSON file.
_MAX_JSON = 1 << 24
_INVALID = (OSError, ValueError, LookupError, TypeError, RecursionError, UserError)


def prepared(name: str, directory: str | None) -> Path | None:
    """Returns the folder of the newest prepared `array_record` version, if any.

    Args:
      name: name of the data set in TFDS.
      directory: data directory of TFDS; TFDS_DATA_DIR or its default if None.
    """
    found = _found(name, directory).get("array_record")
    return max(found)[1] if found else None


def _base(directory: str | None) -> Path:
    """Returns a data directory of TFDS."""
    base = directory or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(os.path.expanduser(base))


def _found(
    name: str, directory: str | None
) -> dict[str, list[tuple[tuple[int, ...], Path]]]:
    """Returns the prepared versions and their folders, by the format of the files."""
    found: dict[str, list[tuple[tuple[int, ...], Path]]] = {}
    folder = _base(directory) / emnist.full_name(name)
    for info in folder.glob("*/dataset_info.json"):
        try:
            description = parse_json(read_bytes(info, _MAX_JSON))
            version = tuple(int(part) for part in info.parent.name.split("."))
            found.setdefault(description["fileFormat"], []).append(
                (version, info.parent)
            )
        except _INVALID:
            continue
    return found


def prepare(name: str, directory: str | None) -> Path:
    """Downloads and prepares a data set with TFDS, which requires TensorFlow.

    Raises:
      UserError: the data set is unknown, is not for image classification, or is
        prepared in another format; TensorFlow is not installed, or the network cannot
        be reached; or TFDS fails.
    """
    if found := _found(name, directory):
        file_format, versions = found.popitem()
        raise UserError(
            f"data.name={shown(name)} is prepared as {shown(file_format)} in "
            f"{shown(str(max(versions)[1]))}; expected array_record. To prepare it "
            "again, set data.source=tfds and data.dir to another directory"
        )
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
            f"data.name={shown(name)} is not prepared in "
            f"{shown(str(_base(directory)))}, and preparing it requires TensorFlow: "
            "pip install 'flaxmnist[tfds]', or set data.dir to its files in another "
            "form"
        )
    # Without a network TFDS would retry for minutes.
    if not download.reachable(download.registered("mnist")[0].url):
        raise DownloadError(
            f"data.name={shown(name)} is not prepared, and the network cannot be "
            "reached. Connect to a network"
        )
    try:
        builder = tfds.builder(name, data_dir=directory, file_format="array_record")
        _check_features(builder.info.features, name)
        builder.download_and_prepare()
    except UserError:
        raise
    # Each data set is code of its own, which raises any kind of error.
    except Exception as error:
        reason = textwrap.shorten(str(error), 400) or type(error).__name__
        raise UserError(
            f"data.name={shown(name)} cannot be prepared by TensorFlow Datasets "
            f"({reason})"
        ) from error
    return Path(builder.data_dir)


def _check_features(features: Any, name: str) -> None:
    found = {key: features[key] for key in ("image", "label") if key in features}
    shape = getattr(found.get("image"), "shape", None)
    classes = getattr(found.get("label"), "num_classes", None)
    if not shape or not classes:
        raise UserError(
            f"data.name={shown(name)} has images of shape {shape} in {classes} "
            "classes; expected the features 'image', an image, and 'label', a class"
        )


def read(folder: Path) -> Raw:
    """Returns the images of a prepared set.

    The description of the features in the folder is not used, because it may name
    Python code to import.

    Raises:
      UserError: files of a split are missing, or there is no training split.
    """
    paths = {}
    for split in _splits(folder):
        found = sorted(folder.glob(f"*-{split}.array_record-*-of-*"))
        if not found or not found[0].name.endswith(f"-of-{len(found):05d}"):
            raise UserError(
                f"{shown(str(folder))} contains {len(found)} files of the split "
                f"{split}; expected all of them. Prepare the data set again"
            )
        paths[split] = found
    return Raw(
        source="tfds",
        files=tuple(path for found in paths.values() for path in found),
        splits=decoders(
            {
                split: functools.partial(_examples, folder, split, found)
                for split, found in paths.items()
            }
        ),
        class_names=_class_names(folder),
    )


def _splits(folder: Path) -> list[str]:
    """Returns the splits of a prepared set; train and test if it does not list them."""
    try:
        described = parse_json(read_bytes(folder / "dataset_info.json", _MAX_JSON))
        names = [split["name"] for split in described["splits"]]
    except _INVALID:
        return ["train", "test"]
    if "train" not in names:
        raise UserError(
            f"{shown(str(folder))} has the splits {shown(names)}; expected one with "
            "the name 'train'"
        )
    return [split for split in SPLITS if split in names]


def _class_names(folder: Path) -> tuple[str, ...] | None:
    """Returns the names of the classes, if the prepared set has them."""
    try:
        text = read_bytes(folder / "label.labels.txt", _MAX_JSON).decode()
    except _INVALID:
        return None
    return tuple(text.splitlines()) or None


def _examples(folder: Path, split: str, paths: list[Path]) -> Iterator[Example]:
    from array_record.python.array_record_data_source import ArrayRecordDataSource
    from tensorflow_datasets.proto import tf_example_pb2

    try:
        for row, record in enumerate(ArrayRecordDataSource(paths)):
            feature = tf_example_pb2.Example.FromString(record).features.feature
            yield Example(
                f"example {row} of the split {split} in {shown(str(folder))}",
                feature["image"].bytes_list.value[0],
                feature["label"].int64_list.value[0],
            )
    # Each reader raises its own type of error for damaged data.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"the split {split} in {folder} cannot be read ({reason[:160]}). "
            "Prepare the data set again"
        ) from None
