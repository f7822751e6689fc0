"""NumPy's .npz files: the names and forms of their arrays, and what is refused."""

import io
import zipfile

import numpy as np
import pytest

from flaxmnist import data
from flaxmnist.data import cache, duplicates, idx
from flaxmnist.errors import UserError

LABELS = np.arange(24) % 4
IMAGES = np.random.default_rng(0).integers(0, 256, (24, 6, 5)).astype(np.uint8)
SQUARES = IMAGES[:, :5]


def save(path, **arrays):
    np.savez(path, **arrays)
    return path


def joined(dataset, field="images"):
    """The arrays of all splits, sorted, so that the draw does not matter."""
    parts = [getattr(dataset.split(split), field) for split in data.SPLITS]
    array = np.concatenate(parts)
    return np.unique(array.reshape(len(array), -1), axis=0)


@pytest.mark.parametrize(
    ("names", "counts"),
    [
        (("x_train", "y_train", "x_test", "y_test"), (22, 2, 24)),  # Keras.
        (("train_images", "train_labels", "test_images", "test_labels"), (22, 2, 24)),
        (("images", "labels"), (19, 1, 4)),
    ],
)
def test_arrays_under_every_name(tmp_path, names, counts):
    arrays = dict(zip(names, (IMAGES, LABELS) * 2, strict=False))
    dataset = data.load(dir=save(tmp_path / "sea shells.npz", **arrays))
    assert (dataset.name, dataset.source) == ("sea shells", "npz")
    assert tuple(dataset.counts.values()) == counts
    assert (dataset.image_shape, dataset.num_classes) == ((6, 5, 1), 4)
    np.testing.assert_array_equal(joined(dataset), joined_of(IMAGES))
    assert (dataset.warning is None) == (len(names) == 4)
    for image, label in zip(dataset.train.images, dataset.train.labels, strict=True):
        (row,) = np.flatnonzero((image == IMAGES).all((1, 2)))
        assert LABELS[row] == label


def joined_of(images):
    return np.unique(images.reshape(len(images), -1), axis=0)


ONE_HOT = np.eye(4)[LABELS]


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (SQUARES / 255, LABELS),
        (SQUARES.astype(np.float32), LABELS[:, None]),
        (SQUARES.astype(np.int64)[..., None], LABELS.astype(float)),
        (SQUARES.reshape(24, 25), ONE_HOT),
        (SQUARES[:, None], ONE_HOT.astype(int)),  # Channels first.
        (np.asfortranarray(SQUARES), LABELS),
    ],
)
def test_the_same_images_in_other_arrays_are_the_same(tmp_path, images, labels):
    plain = data.load(dir=save(tmp_path / "plain.npz", x=SQUARES, y=LABELS))
    other = data.load(dir=save(tmp_path / "other.npz", x=images, y=labels))
    assert other.fingerprints == plain.fingerprints
    assert other.class_names == plain.class_names


def test_colour_with_channels_first_or_last(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (24, 6, 5, 3), np.uint8)
    last = data.load(dir=save(tmp_path / "last.npz", x=images, y=LABELS))
    first = data.load(
        dir=save(tmp_path / "first.npz", x=np.moveaxis(images, -1, 1), y=LABELS)
    )
    assert last.image_shape == first.image_shape == (6, 5, 3)
    assert last.fingerprints == first.fingerprints


@pytest.mark.parametrize(
    ("labels", "names", "kept"),
    [
        (LABELS * 3 + 2, None, ("2", "5", "8", "11")),
        (np.array(["b", "a", "é t", "c"])[LABELS], None, ("a", "b", "c", "é t")),
        (LABELS - 9, None, ("-9", "-8", "-7", "-6")),
        (LABELS, ["w", "x", "y", "z"], ("w", "x", "y", "z")),
        (LABELS % 3, ["w", "x", "y", "z"], ("w", "x", "y", "z")),
        (LABELS, [b"w", b"x", b"y", b"z"], ("w", "x", "y", "z")),
    ],
)
def test_labels_become_consecutive_and_keep_their_names(tmp_path, labels, names, kept):
    arrays = {"x": IMAGES, "y": labels}
    if names:
        arrays["class_names"] = np.array(names)
    dataset = data.load(dir=save(tmp_path / "a.npz", **arrays))
    assert dataset.class_names == kept
    for image, label in zip(dataset.train.images, dataset.train.labels, strict=True):
        (row,) = np.flatnonzero((image == IMAGES).all((1, 2)))
        expected = kept[labels[row]] if names else str(labels[row])
        assert kept[label] == expected


def test_labels_of_named_classes_may_count_from_one(tmp_path):
    first, second = (
        data.load(dir=save(tmp_path / name, x=IMAGES, y=labels, classes=list("wxyz")))
        for name, labels in (("0.npz", LABELS), ("1.npz", LABELS + 1))
    )
    assert first.class_names == second.class_names == tuple("wxyz")
    assert first.fingerprints == second.fingerprints


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        (
            {"x": np.array([None, {}]), "y": LABELS},
            "x.npy in .* contains Python objects",
        ),
        ({"a": IMAGES}, "contains the arrays a; expected x_train, y_train"),
        (
            {"x": IMAGES, "y": LABELS[:9]},
            r"shapes \[24, 6, 5\] and \[9\]; expected the",
        ),
        (
            {"x": IMAGES / 9, "y": LABELS},
            "float64 pixels from 0 to 28.3.*; expected who",
        ),
        ({"x": IMAGES - 1.0, "y": LABELS}, "float64 pixels from -1 to 25"),
        ({"x": IMAGES * np.nan, "y": LABELS}, "pixels from nan to nan"),
        ({"x": IMAGES.astype(int) + 1, "y": LABELS}, "int64 pixels from 1 to 256"),
        (
            {"x": IMAGES.reshape(24, 30), "y": LABELS},
            r"images of shape \[30\]; expected",
        ),
        ({"x": np.zeros((24, 9, 9, 9)), "y": LABELS}, r"images of shape \[9, 9, 9\]"),
        ({"x": np.zeros((24, 300, 2)), "y": LABELS}, r"most 256 pixels per side"),
        (
            {"x": IMAGES, "y": LABELS + 0.5},
            "contains the label 0.5; expected whole num",
        ),
        (
            {"x": IMAGES, "y": LABELS * 0},
            r"contains 1 class \('0'\); expected from 2",
        ),
        (
            {"x": IMAGES, "y": LABELS.astype(np.uint64) + np.uint64(2**63)},
            "the label 9223372036854775808; expected whole numbers of at most 64 bits",
        ),
        (
            {"x": IMAGES, "y": np.array(["", "a"])[LABELS % 2]},
            "contains an empty label",
        ),
        ({"x": IMAGES, "y": LABELS * 1e30}, r"the label 1e\+30; expected whole number"),
        (
            {"x": IMAGES, "y": np.array(["0", "1", "nan", "2"])[LABELS]},
            "the label 'nan', which stands for a missing number; expected whole numb",
        ),
        (
            {"x": IMAGES, "y": np.ones((24, 4))},
            r"labels of shape \[24, 4\] that are not",
        ),
        (
            {"x": IMAGES.astype(str), "y": LABELS},
            "pixels of dtype <U3; expected numbers",
        ),
    ],
)
def test_other_arrays_are_refused_and_nothing_is_left(tmp_path, arrays, said):
    with pytest.raises(UserError, match=said):
        data.load(dir=save(tmp_path / "a.npz", **arrays))
    left = cache.cache_dir() / "converted"
    assert not left.exists() or list(left.iterdir()) == []


def test_an_error_while_reading_is_not_one_of_the_cache(tmp_path, monkeypatch):
    path = save(tmp_path / "a.npz", x=IMAGES, y=LABELS)

    def failing(*_):
        raise OSError(5, "Input/output error")
        yield

    monkeypatch.setattr("flaxmnist.data.arrays._chunks", failing)
    with pytest.raises(UserError, match=r"a\.npz' cannot be read \(Input/output error"):
        data.load(dir=path)


def test_a_header_that_announces_too_much_is_refused(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (1 << 40, 28, 28)}
    )
    path = save(tmp_path / "a.npz", y=LABELS)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("x.npy", header.getvalue() + bytes(99))
    with pytest.raises(
        UserError, match="announces 862,017,116,176,384 bytes and has 99"
    ):
        data.load(dir=path)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"PK\x01\x02", b"PK\x01\x00"))
    with pytest.raises(UserError, match=r"cannot be read as an \.npz file \(Bad magic"):
        data.load(dir=path)
    path.write_bytes(whole[:-40])
    with pytest.raises(UserError, match=r"a\.npz"):
        data.load(dir=path)


def test_the_draw_depends_on_its_seed_only_and_is_stratified(tmp_path):
    images = np.arange(600 * 16, dtype=np.uint16).view(np.uint8)[: 600 * 16]
    images = images.reshape(600, 4, 4)
    labels = np.repeat([0, 1, 2], [300, 200, 100])
    path = save(tmp_path / "a.npz", x=images, y=labels)
    one, same, other = (
        data.load(dir=path, validation_share=0.2, split_seed=seed) for seed in (0, 0, 1)
    )
    for split, counts in (
        ("train", [200, 133, 67]),
        ("validation", [50, 33, 17]),
        ("test", [50, 34, 16]),
    ):
        found = np.bincount(one.split(split).labels)
        assert np.abs(found - counts).max() <= 1
    assert one.fingerprints == same.fingerprints != other.fingerprints
    again = {"x_train": images, "y_train": labels, "x_val": images, "y_val": labels}
    path = save(tmp_path / "b.npz", **again)
    with pytest.raises(UserError, match=r"validation_share=0\.2 has no effect on this"):
        data.load(dir=path, validation_share=0.2)


def test_large_arrays_stay_on_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(idx, "MAX_IN_MEMORY", 20)
    dataset = data.load(dir=save(tmp_path / "a.npz", x=SQUARES / 255, y=LABELS))
    for split in data.SPLITS:
        assert isinstance(dataset.split(split).images, np.memmap)
    monkeypatch.undo()
    assert data.load(dir=tmp_path / "a.npz").fingerprints == dataset.fingerprints


def test_arrays_in_memory_are_converted_too():
    images = SQUARES[..., None] / np.float32(255)
    dataset = data.Dataset.from_arrays((images, ONE_HOT), (images, LABELS))
    plain = data.Dataset.from_arrays((SQUARES, LABELS), (SQUARES, LABELS))
    np.testing.assert_array_equal(dataset.train.images, plain.train.images)
    np.testing.assert_array_equal(dataset.train.labels, plain.train.labels)
    for images in (SQUARES.reshape(len(SQUARES), -1), SQUARES[:, None]):
        dataset = data.Dataset.from_arrays((images, LABELS), (images, LABELS))
        np.testing.assert_array_equal(dataset.train.images, plain.train.images)


def test_arrays_without_a_test_split_are_divided_as_files_are(tmp_path):
    given = {"name": "a", "class_names": None}
    dataset = data.Dataset.from_arrays((SQUARES, LABELS), **given)
    file = data.load(dir=save(tmp_path / "a.npz", x=SQUARES, y=LABELS))
    assert dataset.warning == file.warning
    for split in data.SPLITS:
        found, expected = dataset.split(split), file.split(split)
        np.testing.assert_array_equal(found.images, expected.images)
        np.testing.assert_array_equal(found.labels, expected.labels)


def test_arrays_that_are_probably_wrong_are_refused_or_named():
    pair = SQUARES, LABELS
    make = data.Dataset.from_arrays
    for train in (SQUARES, (SQUARES, LABELS, LABELS), None):
        with pytest.raises(UserError, match=r"train is .*; expected a pair of arrays"):
            make(train, pair)
    with pytest.raises(UserError, match="images is a list; expected a NumPy array"):
        make((SQUARES.tolist(), LABELS))
    with pytest.raises(UserError, match="class_names=5: expected a name per class"):
        make(pair, pair, 5)
    with pytest.raises(UserError, match="has 2 classes named 'a'; expected a differe"):
        make(pair, pair, ("a", "b", "c", "a"))
    with pytest.raises(UserError, match=r"of any class of its test split \('5'\)"):
        make(pair, (SQUARES, LABELS * 0 + 5))
    binary = (SQUARES > 99).astype(np.uint8), LABELS
    few = make(binary, (SQUARES, LABELS + 1))
    assert few.warning.startswith("The brightest pixel of the first training images")
    assert "of '4': 6 of 24 test examples cannot" in few.warning


def test_images_in_two_splits_are_counted():
    test = np.concatenate([IMAGES[:5], 255 - IMAGES[:3]])
    arrays = (IMAGES, LABELS), (test, LABELS[:8])
    assert duplicates.count(data.Dataset.from_arrays(*arrays)) == 5
