"""CIFAR-10's published files: both kinds, and pickles that could run code."""

import os
import pickle

import numpy as np
import pytest

from flaxmnist import config as configs
from flaxmnist import data
from flaxmnist.errors import UserError

RNG = np.random.default_rng(0)
PARTS = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
PIXELS = {part: RNG.integers(0, 256, (10, 3_072), np.uint8) for part in PARTS}
LABELS = list(range(10))


def write_binary(folder):
    folder.mkdir(parents=True)
    for part in PARTS:
        records = np.column_stack([np.uint8(LABELS), PIXELS[part]])
        (folder / f"{part}.bin").write_bytes(records.tobytes())


def write_pickles(folder, protocol=2):
    folder.mkdir(parents=True)
    for part in PARTS:
        content = {b"labels": LABELS, b"data": PIXELS[part], b"filenames": [b"a.png"]}
        (folder / part).write_bytes(pickle.dumps(content, protocol))


def test_binary_files_and_pickles_hold_the_same_images(tmp_path):
    write_binary(tmp_path / "bin" / "cifar-10-batches-bin")
    write_pickles(tmp_path / "py" / "cifar-10-batches-py")
    binary, pickled = (data.load(dir=tmp_path / form) for form in ("bin", "py"))
    assert binary.fingerprints == pickled.fingerprints
    assert (binary.source, binary.image_shape) == ("cifar", (32, 32, 3))
    assert binary.class_names[3:6] == ("cat", "deer", "dog")
    planes = PIXELS["test_batch"].reshape(-1, 3, 32, 32)
    np.testing.assert_array_equal(binary.test.images, np.moveaxis(planes, 1, -1))
    np.testing.assert_array_equal(binary.test.labels, LABELS)


def test_the_configuration_names_its_data(tmp_path, mnist_dir, monkeypatch):
    options = configs.as_dict(configs.resolve(configs.load("cifar10")).data)
    del options["placement"]
    write_binary(tmp_path / "files")
    dataset = data.load(**options | {"dir": tmp_path / "files"})
    assert (dataset.name, dataset.source) == ("cifar10", "cifar")
    monkeypatch.setenv("FLAXMNIST_DATA_DIR", str(mnist_dir))
    with pytest.raises(UserError, match="belongs to mnist, not to cifar10"):
        data.load(**options)


def test_the_pickles_of_other_pythons_are_read(tmp_path):
    for protocol in (2, 3, 4):
        write_pickles(tmp_path / str(protocol), protocol)
        assert data.load(dir=tmp_path / str(protocol)).counts["train"] == 46


class Runs:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


class Evaluates:
    def __reduce__(self):
        return eval, ("1",)


def test_a_pickle_runs_nothing(tmp_path):
    write_pickles(tmp_path / "py")
    for content in (Runs(str(tmp_path / "made")), Evaluates(), np.float64(1)):
        (tmp_path / "py" / "data_batch_3").write_bytes(pickle.dumps({b"data": content}))
        with pytest.raises(UserError, match=r"batch_3|could run code"):
            data.load(dir=tmp_path / "py")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("name", ["data_batch_1.bin", "data_batch_4.bin"])
def test_a_damaged_or_missing_file_is_named(tmp_path, name):
    write_binary(tmp_path / "bin")
    path = tmp_path / "bin" / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=f"{name}' cannot be read as CIFAR-10"):
        data.load(dir=path.parent)
    path.unlink()
    with pytest.raises(UserError, match=name):
        data.load(source="cifar", dir=tmp_path / "bin")
