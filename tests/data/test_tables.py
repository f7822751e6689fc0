"""CSV files: where the label is, headers, values, and what is refused."""

import gzip

import numpy as np
import pytest

from flaxmnist import data
from flaxmnist.errors import UserError

LABELS = np.arange(60) % 3
IMAGES = np.random.default_rng(0).integers(0, 256, (60, 5, 5)).astype(np.uint8)
IMAGES[:, 0, 0] = IMAGES[:, -1, -1] = 0  # As in MNIST: nothing in the corners.
IMAGES[7, 0, 0] = IMAGES[9, -1, -1] = 3
PIXELS = [f"pixel{index}" for index in range(25)]
BY_NAME = sorted(range(25), key=PIXELS.__getitem__)


def rows(labels=LABELS, images=IMAGES, at=0, delimiter=",", quote=""):
    text = ""
    for label, image in zip(labels, images.reshape(len(images), -1), strict=True):
        fields = [str(value) for value in image]
        if at is not None:
            fields.insert(at % (len(fields) + 1), str(label))
        text += delimiter.join(f"{quote}{field}{quote}" for field in fields) + "\n"
    return text


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    path = tmp_path_factory.mktemp("npz") / "a.npz"
    np.savez(path, x=IMAGES, y=LABELS)
    return path


KAGGLE = ",".join(["label", *PIXELS]) + "\n"
OPENML = ",".join([*PIXELS, "class"]) + "\r\n"
NUMBERED = ",".join(["", *map(str, range(26))]) + "\n"


@pytest.mark.parametrize(
    "text",
    [
        KAGGLE + rows(),
        rows(),
        rows(at=-1),
        OPENML + rows(at=-1).replace("\n", "\r\n"),
        "\ufeff" + KAGGLE + rows().replace(",", " , ") + "\n\n",
        ",".join(["label", *sorted(PIXELS)])
        + "\n"
        + rows(images=IMAGES.reshape(60, 25)[:, BY_NAME]),
        rows(quote='"'),
        rows(delimiter=";"),
        rows(delimiter="\t", at=-1),
        rows(labels=[f"{label}.0" for label in LABELS]),
        rows(images=IMAGES / 255),
        rows(images=IMAGES.astype(float)),
        # pandas: an index, and numbers as the names of columns.
        NUMBERED + "".join(f"{i},{line}\n" for i, line in enumerate(rows().split())),
        "id,"
        + KAGGLE
        + "".join(f"{i},{line}\n" for i, line in enumerate(rows().split())),
    ],
    ids=range(14),
)
def test_tables_of_every_form_hold_the_same(tmp_path, expected, text):
    path = tmp_path / "digits.csv"
    path.write_text(text, encoding="utf-8", newline="")
    dataset, same = data.load(dir=path), data.load(dir=expected)
    assert (dataset.name, dataset.source) == ("digits", "csv")
    assert dataset.class_names == ("0", "1", "2")
    assert dataset.fingerprints == same.fingerprints
    assert "has no test split; a sixth of each class was drawn" in dataset.warning


def test_kaggles_files_with_and_without_labels_of_the_test(tmp_path):
    (tmp_path / "train.csv").write_text(KAGGLE + rows())
    (tmp_path / "test.csv").write_text(",".join(PIXELS) + "\n" + rows(at=None))
    (tmp_path / "sample_submission.csv").write_text("ImageId,Label\n1,0\n")
    dataset = data.load(dir=tmp_path)
    assert dataset.counts == {"train": 46, "validation": 4, "test": 10}
    assert "test.csv' has no labels, as in Kaggle's" in dataset.warning
    assert "has no test split; a sixth of each class was drawn" in dataset.warning
    (tmp_path / "test.csv").write_text(
        KAGGLE + rows(labels=LABELS[:9], images=IMAGES[:9])
    )
    dataset = data.load(dir=tmp_path)
    assert dataset.warning is None
    np.testing.assert_array_equal(dataset.test.images, IMAGES[:9])
    np.testing.assert_array_equal(dataset.test.labels, LABELS[:9])


def test_named_files_without_header_and_packed(tmp_path):
    for split, part in (("train", slice(0, 50)), ("test", slice(50, 60))):
        text = rows(LABELS[part], IMAGES[part], at=-1)
        path = tmp_path / f"my-{split}.csv.gz"
        path.write_bytes(gzip.compress(text.encode()))
    dataset = data.load(source="csv", dir=tmp_path)
    np.testing.assert_array_equal(dataset.test.images, IMAGES[50:])
    np.testing.assert_array_equal(dataset.test.labels, LABELS[50:])


def test_texts_and_gaps_become_classes(tmp_path):
    names = np.array(["zwölf", "a b", "-"])[LABELS]
    path = tmp_path / "a.csv"
    path.write_text(rows(labels=names, at=-1), encoding="utf-8")
    assert data.load(dir=path).class_names == ("-", "a b", "zwölf")
    path.write_text(rows(labels=LABELS * 10 + 2))
    assert data.load(dir=path).class_names == ("2", "12", "22")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (KAGGLE + rows() + "1,2\n", "line 62 of .* has 2 fields; expected 26"),
        (
            KAGGLE + rows().replace("\n0,0,", "\n0,x,", 1),
            r"has 'x' in column 2; expect",
        ),
        (KAGGLE + rows().replace("\n0,0,", "\n,0,", 1), r"line \d+ of .* has no label"),
        (KAGGLE + rows(images=IMAGES.astype(int) * 2), "pixels from 0 to 510"),
        (
            rows(images=IMAGES[:, :4]),
            "has 21 columns, of which 20 are pixels; expected a",
        ),
        (
            rows(at=None),
            "25 columns, pixels without labels; expected a column of labels",
        ),
        # Without a border that is black, either could be the label.
        (
            rows(images=IMAGES ^ np.arange(60, dtype=np.uint8)[:, None, None]),
            "the first and the last are both like labels",
        ),
        (
            KAGGLE + rows(labels=np.where(LABELS, LABELS.astype(str), "NA")),
            "the label 'NA', which stands for a missing number",
        ),
        (rows(labels=LABELS * 0), "the first and the last are both unlike labels"),
        (rows(labels=LABELS + 0.5), "the first and the last are both unlike labels"),
        ("name,age\nx,1\n", "has 2 columns, of which"),
        (
            "\xff,\xfe".encode("latin1"),
            "cannot be read as CSV .it is not a text in UTF-8",
        ),
        (KAGGLE, "contains no train examples"),
        ("It was, " + "once " * 30_000, r"cannot be read as CSV \(field larger than"),
        (KAGGLE + rows() + f'"{"x" * 150_000}"', r"cannot be read as CSV \(field larg"),
    ],
)
def test_other_tables_are_refused(tmp_path, text, said):
    path = tmp_path / "a.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=said):
        data.load(dir=path)
