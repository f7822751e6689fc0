"""Data files: implausible ones are refused, and temporary files are deleted."""

import os
import shutil

import numpy as np
import pytest
from helpers import NAMES, write_idx, write_prepared

from flaxmnist import data
from flaxmnist.data import download, idx, tfds
from flaxmnist.errors import UserError
from flaxmnist.runtime.files import partial_folder


def sparse(path):
    with path.open("wb") as file:
        file.truncate(1 << 38)


IMPOSTORS = {
    "FIFO": (os.mkfifo, "is not a regular file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "is not a regular file"),
    "sparse": (sparse, "has 274,877,906,944 bytes; expected at most"),
    "directory": (os.mkdir, "Is a directory"),
}


@pytest.mark.parametrize("kind", IMPOSTORS)
def test_only_regular_files_are_read(tmp_path, kind):
    make, said = IMPOSTORS[kind]

    def replace(path):
        path.unlink()
        make(path)

    write_idx(tmp_path / "raw")
    replace(tmp_path / "raw" / NAMES[3])
    with pytest.raises(UserError, match=said):
        data.load("mnist", "idx", str(tmp_path / "raw"))

    write_prepared(tmp_path)
    folder = tmp_path / "mnist" / "3.0.1"
    replace(next(folder.glob("*-test.array_record-*")))
    with pytest.raises(UserError, match=said):
        data.load("mnist", "tfds", str(tmp_path))
    replace(folder / "dataset_info.json")
    assert tfds.prepared("mnist", str(tmp_path)) is None

    path = tmp_path / "raw" / "file"
    make(path)
    assert not download.is_whole(path, download.registered("mnist")[0])


def test_the_content_tells_whether_an_idx_file_is_gzipped(tmp_path):
    images, *_ = write_idx(tmp_path / "raw")
    write_idx(tmp_path / "packed", compress=True)
    swapped = tmp_path / "swapped"
    swapped.mkdir()
    for name in NAMES:
        shutil.copy(tmp_path / "raw" / name, swapped / f"{name}.gz")
    dataset = data.load("mnist", "idx", str(swapped))
    np.testing.assert_array_equal(dataset.train.images, images[2:])
    for name in NAMES:
        os.replace(tmp_path / "packed" / f"{name}.gz", swapped / name)
    assert data.load("mnist", "idx", str(swapped)).fingerprint == dataset.fingerprint


def test_zeros_after_a_gzipped_file_are_refused(tmp_path):
    write_idx(tmp_path, compress=True)
    path = tmp_path / f"{NAMES[0]}.gz"
    os.truncate(path, idx.MAX_UNPACKED)
    with pytest.raises(UserError, match="contains more bytes of data"):
        idx.read(path)


# The cache of converted data sets

PARTS = ("images", "labels")


def converted():
    (folder,) = (download.cache_dir() / "converted").iterdir()
    return folder


def test_a_damaged_converted_set_is_converted_again(tmp_path):
    train, _ = write_prepared(tmp_path)
    data.load("mnist", "tfds", str(tmp_path))
    path = converted() / "train-labels"
    whole = path.read_bytes()
    for damaged in (whole[:8] + bytes(24), whole[:-1], b""):
        path.write_bytes(damaged)
        dataset = data.load("mnist", "tfds", str(tmp_path))
        np.testing.assert_array_equal(dataset.train.labels, np.arange(2, 24) % 10)
        assert path.read_bytes() == whole
    (converted() / "record.json").write_text("{")
    dataset = data.load("mnist", "tfds", str(tmp_path))
    np.testing.assert_array_equal(dataset.train.images, train[2:])


def test_a_set_that_was_prepared_again_is_converted_again(tmp_path):
    write_prepared(tmp_path)
    first = data.load("mnist", "tfds", str(tmp_path))
    folder = tmp_path / "mnist" / "3.0.1"
    info = folder / "dataset_info.json"
    before = info.read_text()
    shutil.rmtree(folder)
    write_prepared(tmp_path, classes=9)
    info.write_text(before)
    again = data.load("mnist", "tfds", str(tmp_path))
    assert (first.test.labels.max(), again.test.labels.max()) == (9, 8)
    shutil.rmtree(folder)
    write_prepared(tmp_path)
    assert data.load("mnist", "tfds", str(tmp_path)).fingerprint == first.fingerprint
    entries = list((download.cache_dir() / "converted").iterdir())
    assert len(entries) == 2  # By content.
    for entry in entries:
        names = [f"{split}-{part}" for split in ("train", "test") for part in PARTS]
        assert {path.name for path in entry.iterdir()} == {*names, "record.json"}


def test_the_partial_files_of_a_killed_process_are_deleted(tmp_path):
    with partial_folder(tmp_path) as alive:
        (alive / "file").touch()
        dead = tmp_path / alive.name.replace(alive.name[-4:], "dead")
        dead.mkdir()
        (dead / "file").touch()
        with partial_folder(tmp_path) as other:
            assert sorted(tmp_path.iterdir()) == sorted([alive, other])
        assert (alive / "file").exists()
    assert list(tmp_path.iterdir()) == []
