"""Parquet files as Hugging Face writes them, and what is refused."""

import io
import json
import sys

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from flaxmnist import data
from flaxmnist.errors import UserError

LABELS = np.arange(24) % 3
IMAGES = np.random.default_rng(0).integers(0, 256, (24, 6, 5)).astype(np.uint8)


def encoded(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def write(path, images=IMAGES, labels=LABELS, names=None, column="image", struct=True):
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [encoded(image) for image in images]
    if struct:
        cells = [{"bytes": cell, "path": f"{i}.png"} for i, cell in enumerate(cells)]
    table = pa.table({"label": list(labels), column: cells})
    if names:
        features = {"label": {"names": names, "_type": "ClassLabel"}}
        described = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": described})
    parquet.write_table(table, path)


@pytest.mark.parametrize("inside", ["", "data", "mnist", "plain text"])
def test_shards_of_every_split_and_the_names_of_classes(tmp_path, inside):
    folder = tmp_path / inside
    write(folder / "train-00000-of-00002.parquet", IMAGES[:10], LABELS[:10])
    write(
        folder / "train-00001-of-00002.parquet", IMAGES[10:20], LABELS[10:20], [*"xyz"]
    )
    write(folder / "validation-00000-of-00001.parquet", IMAGES[20:21], LABELS[20:21])
    write(folder / "test-00000-of-00001.parquet", IMAGES[21:], LABELS[21:])
    dataset = data.load(dir=tmp_path)
    assert (dataset.source, dataset.class_names) == ("parquet", ("x", "y", "z"))
    for split, rows in zip(
        data.SPLITS, (slice(20), slice(20, 21), slice(21, 24)), strict=True
    ):
        np.testing.assert_array_equal(dataset.split(split).images, IMAGES[rows])
        np.testing.assert_array_equal(dataset.split(split).labels, LABELS[rows])
    path = folder / "test-00000-of-00001.parquet"
    write(path, IMAGES[21:], LABELS[21:], [*"yxz"])
    with pytest.raises(UserError, match=r"('y', 'x', 'z').*expected the same names in"):
        data.load(dir=tmp_path)
    (folder / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(
        UserError, match="1 Parquet files of the train split; expected 2"
    ):
        data.load(dir=tmp_path)


@pytest.mark.parametrize("names", [["0000"], ["0000", "0001"], ["birds"]])
def test_files_without_the_name_of_a_split_are_for_training(tmp_path, names):
    for name in names:
        write(tmp_path / "train" / f"{name}.parquet")
    for folder in (tmp_path, tmp_path / "train"):
        dataset = data.load(dir=folder)
        assert sum(dataset.counts.values()) == 24 * len(names)
    write(tmp_path / "other" / "birds-train.parquet")
    write(tmp_path / "other" / "birds-test.parquet")
    assert data.load(dir=tmp_path / "other").counts["test"] == 24


def test_one_file_with_plain_bytes_texts_and_colour(tmp_path):
    colour = np.stack([IMAGES] * 2 + [255 - IMAGES], -1)
    texts = np.array(["b", "ä", "c"])[LABELS]
    write(tmp_path / "birds.parquet", colour, texts, column="img", struct=False)
    dataset = data.load(dir=tmp_path / "birds.parquet")
    assert (dataset.name, dataset.image_shape) == ("birds", (6, 5, 3))
    assert dataset.class_names == ("b", "c", "ä")
    assert dataset.counts == {"train": 19, "validation": 1, "test": 4}


def test_other_files_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    write(path, column="picture")
    with pytest.raises(
        UserError, match="columns label, picture; expected one named ima"
    ):
        data.load(dir=path)
    parquet.write_table(pa.table({"image": [{"bytes": None}], "label": [1]}), path)
    with pytest.raises(
        UserError, match=r"row 0 of .* has an image that is None; expected"
    ):
        data.load(dir=path)
    write(tmp_path / "several" / "train.parquet")
    write(tmp_path / "several" / "test.parquet", column="img")
    with pytest.raises(UserError, match=r"test.parquet' has no column 'image', which"):
        data.load(dir=tmp_path / "several")
    parquet.write_table(pa.table({"image": [b"x"], "label": [1.5]}), path)
    with pytest.raises(
        UserError, match=r"row 0 of .* has the label 1.5; expected an inte"
    ):
        data.load(dir=path)
    parquet.write_table(pa.table({"image": [b"x"], "label": [1]}), path)
    with pytest.raises(UserError, match=r"row 0 of .* cannot be read as an image"):
        data.load(dir=path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        data.load(dir=path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pip install 'flaxmnist\[parquet\]'"):
        data.load(dir=path)
