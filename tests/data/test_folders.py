"""Image directories: layouts, kinds of images, and what is refused."""

import os

import numpy as np
import pytest
from PIL import Image

from flaxmnist import data
from flaxmnist.errors import UserError

RNG = np.random.default_rng(0)


def image(shape=(8, 8)):
    return RNG.integers(0, 256, shape).astype(np.uint8)


def fill(folder, classes=("a", "b"), count=6, suffix=".png", make=image):
    """Writes images in a directory per class; returns them by class."""
    written = {}
    for name in classes:
        (folder / name).mkdir(parents=True)
        for index in range(count):
            array = make()
            written.setdefault(name, []).append(array)
            Image.fromarray(array).save(folder / name / f"{index}{suffix}")
    return written


def test_splits_in_directories_are_taken_as_they_are(tmp_path):
    folder = tmp_path / "archive" / "numbers" / "x"
    classes = ("10", "9", "1")
    written = {
        "train": fill(folder / "Training", classes),
        "validation": fill(folder / "val", classes, 2),
        "test": fill(folder / "testing", classes[:2], 3),
    }
    dataset = data.load(dir=tmp_path / "archive")
    assert (dataset.name, dataset.source) == ("archive", "folder")
    assert dataset.class_names == ("1", "9", "10")
    assert dataset.warning is None
    for split, images in written.items():
        for name, expected in images.items():
            label = dataset.class_names.index(name)
            part = dataset.split(split)
            np.testing.assert_array_equal(part.images[part.labels == label], expected)


def test_one_directory_is_split_by_class(tmp_path):
    written = fill(tmp_path, ("ein Wort", "ß"), 36)
    dataset = data.load(dir=tmp_path)
    assert dataset.class_names == ("ein Wort", "ß")
    assert dataset.counts == {"train": 55, "validation": 5, "test": 12}
    np.testing.assert_array_equal(np.bincount(dataset.test.labels), [6, 6])
    found = {
        array.tobytes(): dataset.class_names[label]
        for split in map(dataset.split, data.SPLITS)
        for array, label in zip(split.images, split.labels, strict=True)
    }
    expected = {a.tobytes(): name for name, arrays in written.items() for a in arrays}
    assert found == expected


def test_hidden_files_other_files_and_empty_directories_are_left_out(tmp_path):
    fill(tmp_path / "train", count=3, suffix=".PNG")
    fill(tmp_path / "test", count=2)
    expected = data.load(dir=tmp_path).fingerprints
    for name in (
        ".hidden/1.png",
        "__MACOSX/a/1.png",
        "train/a/.1.png",
        "train/a/.thumbnails/1.png",
        "train/a/deep/__MACOSX/1.png",
        "train/a/1.txt",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("?")
    (tmp_path / "train/a/none/deep").mkdir(parents=True)
    (tmp_path / "train/c/deep").mkdir(parents=True)
    dataset = data.load(dir=tmp_path)
    assert dataset.fingerprints == expected
    assert "/train/c' contains no images and is left out" in dataset.warning


GRAY = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (8, 1))[:, :8] + 9
KINDS = {
    "gray": lambda: Image.fromarray(GRAY),
    "gray and alpha": lambda: Image.fromarray(
        np.stack([GRAY, np.full_like(GRAY, 255)], -1)
    ),
    "palette": lambda: Image.fromarray(GRAY).convert("P"),
    "16 bits": lambda: Image.fromarray(GRAY.astype(np.uint16) * 257),
}


@pytest.mark.parametrize("kind", KINDS)
def test_gray_images_of_every_kind_are_the_same(tmp_path, kind):
    for name in ("train/a", "train/b", "test/a"):
        (tmp_path / name).mkdir(parents=True)
        for index in range(2):
            KINDS[kind]().save(tmp_path / name / f"{index}.png")
    dataset = data.load(dir=tmp_path)
    assert dataset.image_shape == (8, 8, 1)
    np.testing.assert_array_equal(dataset.test.images, [GRAY, GRAY])


def test_transparent_pixels_are_paper(tmp_path):
    drawings = np.zeros((2, 4, 8, 4), np.uint8)
    drawings[:, :, :3, 3] = 255  # Drawn in black, and in red.
    drawings[1, ..., 0] = 255
    fill(tmp_path, count=2, make=lambda: drawings[0])
    assert data.load(dir=tmp_path).image_shape == (4, 8, 3)
    paper = data.load(dir=tmp_path).test.images[0]
    assert (paper[:, :3] == 0).all()
    assert (paper[:, 3:] == 255).all()


def test_images_in_lab_are_in_colour(tmp_path):
    for name, lightness in (("a", 0), ("b", 255)):
        (tmp_path / name).mkdir()
        for index in range(3):
            planes = [Image.new("L", (4, 4), level) for level in (lightness, 128, 128)]
            Image.merge("LAB", planes).save(tmp_path / name / f"{index}.tiff")
    train = data.load(dir=tmp_path).train
    assert train.image_shape == (4, 4, 3)
    np.testing.assert_allclose(train.images.mean((1, 2, 3)), train.labels * 255, atol=9)


def test_one_image_in_colour_makes_all_colour(tmp_path):
    gray = fill(tmp_path / "train", count=2)
    fill(tmp_path / "test", count=2, make=lambda: image((8, 8, 3)))
    dataset = data.load(dir=tmp_path, validation_share=0.3)
    assert dataset.image_shape == (8, 8, 3)
    known = {array.tobytes() for arrays in gray.values() for array in arrays}
    for array in dataset.train.images:
        assert (array == array[..., :1]).all()
        assert array[..., 0].tobytes() in known


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda folder: Image.fromarray(image((8, 9))).save(folder / "b" / "7.png"),
            r"b/7.png' is an image of 9×8, and .*a/0.png' of 8×8; expected one size",
        ),
        (
            lambda folder: Image.fromarray(image((300, 8))).save(
                folder / "b" / "7.png"
            ),
            r"b/7.png' is an image of 8×300; expected at most 256×256",
        ),
        (
            lambda folder: (folder / "b" / "7.png").write_text("x"),
            r"b/7.png' cannot be read as an image \(UnidentifiedImageError\)",
        ),
        (
            lambda folder: (folder / "b" / "7.jpg").write_bytes(
                (folder / "b" / "1.png").read_bytes()[:-30]
            ),
            r"b/7.jpg' cannot be read as an image",
        ),
        (
            lambda folder: (folder / "b").rename(folder / "a" / "b"),
            r"contains 1 class \('a'\); expected from 2",
        ),
    ],
)
def test_other_directories_are_refused(tmp_path, spoil, said):
    fill(tmp_path)
    spoil(tmp_path)
    with pytest.raises(UserError, match=said):
        data.load(dir=tmp_path)


def test_a_class_of_the_test_only_is_refused_and_an_unlabelled_test_left_out(tmp_path):
    fill(tmp_path / "train")
    (tmp_path / "test").mkdir()
    Image.fromarray(image()).save(tmp_path / "test" / "1.png")
    dataset = data.load(dir=tmp_path)
    left_out, drawn = dataset.warning.splitlines()
    assert "/test' has no images in directories named after classes" in left_out
    assert "has no test split; a sixth of each class was drawn" in drawn
    fill(tmp_path / "test", ("z",))
    said = r"no training examples of any class of its test split \('z'\); expected"
    with pytest.raises(UserError, match=said):
        data.load(dir=tmp_path)
    fill(tmp_path / "test", ("b",))
    warning = data.load(dir=tmp_path).warning
    assert "no training examples of 'z': 6 of 12 test examples cannot be" in warning


def test_the_names_of_classes_can_be_printed(tmp_path):
    fill(tmp_path, ("a\nb", os.fsdecode(b"\xff")))
    assert data.load(dir=tmp_path).class_names == ("a\\nb", "\\udcff")


@pytest.mark.parametrize(
    ("train", "other", "split"),
    [
        ("seg_train", "seg_test", "test"),
        ("training_set", "test_set", "test"),
        ("train", "dev", "validation"),
    ],
)
def test_other_spellings_of_splits_are_no_classes(tmp_path, train, other, split):
    fill(tmp_path / train)
    written = fill(tmp_path / other, count=2)
    dataset = data.load(dir=tmp_path)
    assert dataset.class_names == ("a", "b")
    np.testing.assert_array_equal(
        dataset.split(split).images, np.concatenate(list(written.values()))
    )


def test_a_class_may_be_named_train(tmp_path):
    fill(tmp_path, ("bus", "car", "train"))
    assert data.load(dir=tmp_path).class_names == ("bus", "car", "train")


def test_splits_that_cannot_be_used_are_named(tmp_path):
    fill(tmp_path / "test")
    fill(tmp_path / "val")
    with pytest.raises(UserError, match="the splits 'test', 'val'; expected a dir"):
        data.load(dir=tmp_path)
    fill(tmp_path / "train")
    fill(tmp_path / "holdout")
    assert "holdout' is not one of the splits" in data.load(dir=tmp_path).warning


def test_training_images_without_classes_are_named(tmp_path):
    fill(tmp_path, ("train",))
    said = "/train' contains no images in directories named after classes; expected one"
    with pytest.raises(UserError, match=said):
        data.load(dir=tmp_path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
def test_photographs_are_turned_upright_as_in_predictions(tmp_path, suffix):
    for name, level in (("a", 0), ("b", 255)):
        (tmp_path / name).mkdir()
        photograph = Image.fromarray(np.full((4, 8), level, np.uint8))
        photograph.paste(128, (0, 0, 4, 4))
        photograph.getexif()[0x0112] = 6  # Turn it clockwise.
        for index in range(3):
            photograph.save(
                tmp_path / name / f"{index}.{suffix}",
                quality=100,
                exif=photograph.getexif(),
            )
    dataset = data.load(dir=tmp_path)
    assert dataset.image_shape[:2] == (8, 4)
    assert abs(dataset.train.images[:, :4].astype(int) - 128).max() < 9


def test_images_that_are_nearly_black_are_noticed(tmp_path):
    fill(tmp_path, make=lambda: RNG.integers(0, 256, (8, 8)).astype(np.uint16))
    assert (
        "is 1 of 255, so that they are nearly black" in data.load(dir=tmp_path).warning
    )
