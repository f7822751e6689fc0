"""Numbers of several digits are read from pictures."""

import functools
import json

import jax
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

import flaxmnist
from flaxmnist import UserError
from flaxmnist.cli import predict
from flaxmnist.core import mnist
from flaxmnist.inference import division, reading
from flaxmnist.inference.predict import Prediction
from flaxmnist.pictures.digits import segment


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """Two lines of digits."""
    path = tmp_path_factory.mktemp("pictures") / "numbers.png"
    image = Image.new("L", (260, 200), 255)
    font = ImageFont.load_default(48)
    pen = ImageDraw.Draw(image)
    for top, line in ((20, "3 1 4"), (110, "2 7")):
        pen.text((40, top), line, fill=0, font=font)
    image.save(path)
    return path


def test_a_run_reads_numbers_with_a_box_per_digit(finished_run, picture):
    run = flaxmnist.open_run(finished_run[0])
    reading = run.read(picture)
    assert [len(line) for line in reading.lines] == [3, 2]
    lines = reading.text.split("\n")
    assert [len(line.replace(" ", "")) for line in lines] == [3, 2]
    ink = np.asarray(Image.open(picture)) < 128
    for digit in reading.digits:
        left, top, right, bottom = digit.box
        assert ink[top:bottom, left:right].any()
        ink[top:bottom, left:right] = False
        assert digit.prediction.probabilities.sum() == pytest.approx(1)
    assert ink.sum() < 40

    annotated = np.asarray(reading.annotated()).astype(int)
    assert (np.ptp(annotated, axis=2) > 90).sum() > 100

    empty = flaxmnist.read_digits(np.full((60, 80), 255, np.uint8), run.state)
    assert (empty.text, empty.warnings) == ("", ("no digit found",))
    with pytest.raises(ValueError, match="nothing was found"):
        empty.annotated()
    # Equal logits, and such that are not numbers.
    for factor in (0, np.nan):
        params = jax.tree.map(functools.partial(np.multiply, factor), run.state.params)
        same = run.state.replace(params=params, ema=None)
        assert flaxmnist.read_digits(picture, same).text
    with pytest.raises(UserError, match=r"28 × 28 × 1 as a, b, c, …; numbers are read"):
        flaxmnist.read_digits(picture, run.state, "abcdefghij")


def test_glyphs_are_divided_where_the_parts_are_recognized(monkeypatch):
    """The model of this test is sure of circles only."""
    image = Image.new("L", (150, 80))
    pen = ImageDraw.Draw(image)
    for left in (10, 55, 100):
        pen.ellipse([left, 20, left + 46, 66], outline=255, width=6)
    glyphs = segment(np.asarray(image, np.float32) / 255)
    assert len(glyphs) == 1

    def recognize(prepared, state, class_names, calibration):
        found = []
        for one in prepared:
            rows, columns = np.nonzero(one.image > 100)
            radius = np.hypot(rows - rows.mean(), columns - columns.mean())
            logits = np.zeros(10)
            flat = abs(np.ptp(rows) - np.ptp(columns)) / 4
            logits[0] = 12 * np.exp(-flat - radius.std() / 2)
            found.append(Prediction(one, logits, class_names))
        return found

    monkeypatch.setattr(division, "predict_prepared", recognize)
    parts = [part for part, _ in division.divide(glyphs, None)]
    assert len(parts) == 3
    for part, left in zip(parts, (10, 55, 100), strict=True):
        assert abs(part.glyph.box[0] - left) < 10
        assert part.is_cut


def test_a_picture_of_scraps_alone_gives_the_reason(picture, monkeypatch):
    monkeypatch.setattr(reading, "divide", lambda *_: iter(()))
    found = reading.read_picture(picture, None)
    assert (found.digits, found.warnings) == ((), ("no digit found",))
    assert found.annotated().size


def test_the_command_line_reads_numbers(finished_run, picture, tmp_path, capsys):
    flags = [f"--workdir={finished_run[0]}", "--read", str(picture)]
    assert predict.main(flags) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 5
    assert lines[0].startswith(f"{picture}  ")

    missing = str(tmp_path / "nope.png")
    folder = tmp_path / "ready"
    more = [missing, "--json", f"--save_preprocessed={folder}"]
    assert predict.main([*flags, *more]) == 1
    out, err = capsys.readouterr()
    assert "nope.png does not exist" in err
    (record,) = map(json.loads, out.splitlines())
    assert [line["text"] for line in record["lines"]] == record["text"].split("\n")
    assert len(record["digits"]) == 5
    for digit in record["digits"]:
        assert len(digit["box"]) == 4
        assert digit["probability"] == max(digit["probabilities"])
        assert digit["label"] == mnist.CLASS_NAMES[digit["digit"]]
    (saved,) = folder.iterdir()
    assert saved.name == "0000-numbers.png"

    assert predict.main([flags[0], "--read", "--split=test"]) == 2
    assert "--read has no effect on --split" in capsys.readouterr().err
