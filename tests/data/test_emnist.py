"""IDX files of every type, EMNIST, QMNIST, and images that are transposed."""

import gzip
import lzma
import struct

import numpy as np
import pytest
from helpers import NAMES, save_idx, write_prepared

from flaxmnist import data
from flaxmnist.data import emnist
from flaxmnist.data.datasets import locate
from flaxmnist.errors import UserError

CODES = {"u1": 8, "i1": 9, ">i2": 11, ">i4": 12, ">f4": 13, ">f8": 14}
LABELS = np.arange(48) % 12
IMAGES = np.random.default_rng(0).integers(0, 128, (48, 6, 5))


def save(path, array, dtype="u1", pack=bytes):
    path.parent.mkdir(parents=True, exist_ok=True)
    head = struct.pack(
        f">4B{array.ndim}I", 0, 0, CODES[dtype], array.ndim, *array.shape
    )
    path.write_bytes(pack(head + array.astype(dtype).tobytes()))


@pytest.mark.parametrize("dtype", CODES)
def test_idx_of_every_type_size_and_class_count(tmp_path, dtype):
    for stem in ("train", "t10k"):
        save(tmp_path / f"{stem}-images.idx3-any", IMAGES, dtype)
        save(tmp_path / f"{stem}-labels-idx1-any.gz", LABELS + 1, dtype, gzip.compress)
    dataset = data.load(dir=tmp_path)
    assert (dataset.name, dataset.source) == (tmp_path.name, "idx")
    assert dataset.class_names == tuple(map(str, range(1, 13)))
    np.testing.assert_array_equal(dataset.train.images, IMAGES[4:])
    np.testing.assert_array_equal(dataset.test.labels, LABELS)


def test_idx_like_mnist_has_its_own_name_and_classes(tmp_path):
    labels = (np.arange(48) % 3 * 2).astype(np.uint8)
    save_idx(tmp_path / "even", [np.resize(SIDEWAYS, (48, 28, 28)), labels] * 2)
    dataset = data.load(dir=tmp_path / "even")
    assert (dataset.name, dataset.class_names) == ("even", ("0", "2", "4"))
    np.testing.assert_array_equal(dataset.test.labels, labels // 2)


def test_idx_in_colour_with_pixels_in_the_unit_interval(tmp_path):
    images = np.stack([IMAGES, IMAGES, 0 * IMAGES], -1)
    for stem in ("train", "test"):
        save(tmp_path / f"{stem}-images-idx4-float", images / 255, ">f4")
        save(tmp_path / f"{stem}-labels-idx1-ubyte", LABELS)
    dataset = data.load(dir=tmp_path)
    np.testing.assert_array_equal(dataset.test.images, images)


SPLITS = {
    "byclass": (0, "019AZaz"),
    "bymerge": (0, "019AZat"),
    "balanced": (0, "019AZat"),
    "letters": (1, "ABZ"),
    "digits": (0, "019"),
    "mnist": (0, "019"),
}
SIDEWAYS = np.random.default_rng(0).integers(0, 256, (24, 28, 28)).astype(np.uint8)


@pytest.mark.parametrize("inside", ["", "EMNIST/raw", "gzip", "raw"])
@pytest.mark.parametrize("split", SPLITS)
def test_emnist_is_upright_and_names_its_classes(tmp_path, split, inside):
    first, names = SPLITS[split]
    expected = [emnist.SPLITS[split].index(name) for name in names]
    labels = np.resize(expected, 24)
    for part in ("train", "test"):
        stem = tmp_path / inside / f"emnist-{split}-{part}"
        save(stem.with_name(f"{stem.name}-images-idx3-ubyte"), SIDEWAYS)
        packed = stem.with_name(f"{stem.name}-labels-idx1-ubyte.gz")
        save(packed, labels + first, pack=gzip.compress)
    name = "emnist" if (split, inside) == ("byclass", "raw") else f"emnist/{split}"
    dataset = data.load(name, dir=tmp_path)
    assert (dataset.name, dataset.source) == (name, "idx")
    assert "".join(dataset.class_names) == emnist.SPLITS[split]
    np.testing.assert_array_equal(dataset.test.images, SIDEWAYS.transpose(0, 2, 1))
    np.testing.assert_array_equal(dataset.test.labels, labels)


@pytest.mark.parametrize(
    ("suffix", "pack"), [(".gz", gzip.compress), (".xz", lzma.compress)]
)
def test_qmnist_has_its_class_in_the_first_of_eight_numbers(tmp_path, suffix, pack):
    labels = np.zeros((24, 8), int)
    labels[:, 0], labels[:, 1:] = np.arange(24) % 10, 70_000
    for part in ("train", "test"):
        stem = tmp_path / "QMNIST" / "raw" / f"qmnist-{part}"
        save(
            stem.with_name(f"{stem.name}-images-idx3-ubyte{suffix}"),
            SIDEWAYS,
            pack=pack,
        )
        save(
            stem.with_name(f"{stem.name}-labels-idx2-int{suffix}"), labels, ">i4", pack
        )
    with pytest.raises(
        UserError, match=r"contains qmnist, not mnist; set data.name='q"
    ):
        data.load(dir=tmp_path)
    dataset = data.load("qmnist", dir=tmp_path)
    assert (dataset.name, dataset.num_classes) == ("qmnist", 10)
    np.testing.assert_array_equal(dataset.test.images, SIDEWAYS)
    np.testing.assert_array_equal(dataset.test.labels, labels[:, 0])


@pytest.mark.parametrize("shape", [(784,), (1, 28, 28), (28, 28, 1)])
def test_emnist_in_arrays_is_upright_in_every_layout(tmp_path, shape):
    np.savez(
        tmp_path / "a.npz", x=SIDEWAYS.reshape(-1, *shape), y=np.resize([1, 26], 24)
    )
    dataset = data.load("emnist/letters", dir=tmp_path / "a.npz")
    upright = {image.tobytes() for image in SIDEWAYS.transpose(0, 2, 1)}
    assert {image.tobytes() for image in dataset.train.images} < upright
    assert set(dataset.train.labels) == {0, 25}


def test_emnist_keeps_labels_that_are_names(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, x=SIDEWAYS, y=np.resize(["A", "C"], 24))
    assert data.load("emnist/letters", dir=path).class_names == ("A", "C")
    np.savez(path, x=SIDEWAYS, y=np.resize([0, 1], 24))
    with pytest.raises(UserError, match="the label 0; expected labels from 1, as in"):
        data.load("emnist/letters", dir=path)
    np.savez(path, x=SIDEWAYS, y=np.resize([0, 1], 24), class_names=["x", "y"])
    assert data.load("emnist/letters", dir=path).class_names == ("x", "y")
    names = list(emnist.SPLITS["letters"])
    np.savez(path, x=SIDEWAYS, y=np.resize([1, 26], 24), class_names=names)
    assert set(data.load("emnist/letters", dir=path).train.labels) == {0, 25}


def test_transposed_digits_are_refused_or_turned(tmp_path):
    digits = data.load("mnist", "bundled")
    upright = [digits.train.images, digits.train.labels]
    upright += [digits.test.images, digits.test.labels]
    turned = [
        array.transpose(0, 2, 1) if array.ndim == 3 else array for array in upright
    ]
    save_idx(tmp_path / "upright", upright)
    save_idx(tmp_path / "turned", turned)
    assert data.load(dir=tmp_path / "upright").name == "upright"
    said = "are transposed, as in EMNIST's files; .* Set data.name to one of emnist/byc"
    with pytest.raises(UserError, match=said):
        data.load(dir=tmp_path / "turned")
    dataset = data.load("emnist/digits", dir=tmp_path / "turned")
    np.testing.assert_array_equal(dataset.test.images, digits.test.images)
    # In other forms, too.
    path = tmp_path / "a.npz"
    np.savez(
        path, x_train=turned[0], y_train=turned[1], x_test=turned[2], y_test=turned[3]
    )
    with pytest.raises(UserError, match=said):
        data.load(dir=path)
    dataset = data.load("emnist/digits", dir=path)
    np.testing.assert_array_equal(dataset.test.images, digits.test.images)


def test_letters_under_mnists_names_are_refused(tmp_path, monkeypatch):
    labels = np.arange(78, dtype=np.uint8) % 26 + 1
    images = np.resize(SIDEWAYS, (78, 28, 28))
    save_idx(tmp_path, [images, labels] * 2)
    assert data.load(dir=tmp_path).class_names[:2] == ("1", "2")
    monkeypatch.setattr(emnist, "_LETTERS", (156,))
    with pytest.raises(UserError, match="are transposed, as in EMNIST's files"):
        data.load(dir=tmp_path)


def test_the_name_of_a_file_turns_no_images(tmp_path):
    np.savez(tmp_path / "other.npz", x=SIDEWAYS, y=np.arange(24) % 12)
    expected = data.load(dir=tmp_path / "other.npz")
    path = (tmp_path / "other.npz").rename(tmp_path / "emnist.npz")
    dataset = data.load(dir=path)
    assert dataset.name == "emnist"
    assert dataset.class_names == expected.class_names
    assert dataset.fingerprints == expected.fingerprints


def test_emnist_without_a_split_is_byclass(tmp_path):
    write_prepared(tmp_path / "emnist")
    (tmp_path / "emnist" / "mnist").rename(tmp_path / "emnist" / "byclass")
    dataset = data.load("emnist", "tfds", tmp_path)
    assert (dataset.name, dataset.source) == ("emnist", "tfds")
    assert (
        dataset.fingerprints == data.load("emnist/byclass", dir=tmp_path).fingerprints
    )
    assert locate("emnist", str(tmp_path)) == locate("emnist/byclass", str(tmp_path))
    with pytest.raises(UserError, match=r"'emnist/leters' is unknown; did you mean"):
        data.load("emnist/leters")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "emnist/leters",
            "data.name='emnist/leters' is unknown; did you mean 'emnist/le",
        ),
        ("emnist/letters", "contains the label 1[01]; expected labels|from 0 to 25"),
    ],
)
def test_other_names_and_labels_are_refused(tmp_path, name, said):
    save_idx(tmp_path, [SIDEWAYS, np.arange(24, dtype=np.uint8) + 9] * 2, NAMES)
    with pytest.raises(UserError, match=said):
        data.load(name, dir=tmp_path)
