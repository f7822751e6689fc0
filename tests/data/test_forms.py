"""What is said about files and directories of no known form."""

import os
import re
import tarfile

import numpy as np
import pytest
from PIL import Image

from flaxmnist import data
from flaxmnist.errors import UserError

PIXELS = np.zeros((4, 4), np.uint8)


def archive(path):
    Image.fromarray(PIXELS).save(f"{path}.png")
    with tarfile.open(path, "w") as file:
        file.add(f"{path}.png")


FILES = {
    "array": (
        lambda path: path.write_bytes(b"\x93NUMPY"),
        "is a single array; save images and labels with numpy.savez_compressed",
    ),
    "image": (
        lambda path: Image.fromarray(PIXELS).save(path, "PNG"),
        "is an image; name the directory of the images instead",
    ),
    "IDX": (
        lambda path: path.write_bytes(b"\0\0\x08\x03"),
        "is an IDX file; name the directory of the four files instead",
    ),
    "tar": (archive, "is an archive; unpack it"),
    "half a zip": (
        lambda path: path.write_bytes(b"PK\3\4"),
        "is a damaged .npz file or archive; write or download it again",
    ),
    "gzip": (
        lambda path: path.write_bytes(b"\x1f\x8bx"),
        "is a compressed file; unpack",
    ),
    "text": (
        lambda path: path.write_text("hello"),
        "is of an unknown form; expected a CS",
    ),
    "empty": (
        lambda path: path.touch(),
        "is of an unknown form; expected a CSV, .npz or",
    ),
    "FIFO": (os.mkfifo, "is not a regular file"),
    "nothing": (lambda path: None, "does not exist"),
    "directory": (
        os.mkdir,
        "no train-images-idx3-ubyte .* and no data of another form",
    ),
}


@pytest.mark.parametrize("kind", FILES)
def test_other_files_are_named_with_advice(tmp_path, kind):
    make, said = FILES[kind]
    path = tmp_path / "data"
    make(path)
    with pytest.raises(
        UserError, match=re.escape(said) if kind != "directory" else said
    ):
        data.load(dir=path)


def test_a_source_of_another_form_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=PIXELS[None], y=[0])
    with pytest.raises(UserError, match=r"a\.npz' contains no data of the form csv"):
        data.load(source="csv", dir=tmp_path / "a.npz")
    with pytest.raises(
        UserError, match=r"data\.source='csv' requires a directory or fi"
    ):
        data.load(source="csv")
    np.savez(tmp_path / "b.npz", x=PIXELS[None], y=[0])
    with pytest.raises(
        UserError, match=r"several data sets: a\.npz, b\.npz\. Set data"
    ):
        data.load(dir=tmp_path)
