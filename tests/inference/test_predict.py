"""Pictures: what becomes of them, and what is said of them."""

import io
import json
import os
import shutil
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from scipy.special import softmax

import flaxmnist
from benchmarks.drawn_digits import HANDS, STYLES, draw
from flaxmnist import UserError
from flaxmnist.cli import predict
from flaxmnist.core.calibration import UNCALIBRATED, Calibration
from flaxmnist.inference.predict import predict_prepared
from flaxmnist.pictures.prepare import prepare


@pytest.fixture(scope="module")
def ink():
    """A five as it is drawn by hand, float in [0, 1], light on dark."""
    return np.asarray(draw(5, "first hand", "white on black"), np.float32) / 255


def alike(picture, reference):
    """Returns how alike two prepared pictures are, from 0 to 1."""
    one, other = (
        ndimage.gaussian_filter(prepare(each).image.astype(float), 0.7)
        for each in (picture, reference)
    )
    return (one * other).sum() / np.sqrt((one**2).sum() * (other**2).sum())


def saved(image, **options):
    file = io.BytesIO()
    image.save(file, **options)
    file.seek(0)
    return file


def lamp(ink):
    y, x = np.mgrid[-1 : 1 : ink.shape[0] * 1j, -1 : 1 : ink.shape[1] * 1j]
    return (0.6 + 0.3 * x - 0.1 * y**2) * (1 - 0.6 * ink)


def turned(ink):
    """On its side, with a camera's note that says so."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(np.uint8(255 * (1 - np.rot90(ink))))
    return saved(image, format="JPEG", quality=90, exif=exif)


def transparent(ink, light):
    color = np.full((*ink.shape, 3), 255 * light)
    return Image.fromarray(np.uint8(np.dstack([color, 255 * ink])))


SAME_PICTURE = {
    "dark on light": lambda ink: 1 - ink,
    "uint8": lambda ink: np.uint8(255 * ink),
    "uint16": lambda ink: np.uint16(65_535 * (1 - ink)),
    "three channels": lambda ink: np.repeat(np.uint8(255 * ink)[..., None], 3, axis=2),
    "PNG of 16 bits": lambda ink: saved(
        Image.fromarray(np.uint16(9_000 * ink)), format="PNG"
    ),
    "palette": lambda ink: Image.fromarray(np.uint8(255 * ink)).convert("P"),
    "dark on nothing": lambda ink: transparent(ink, 0),
    "light on nothing": lambda ink: transparent(ink, 1),
    "one bit": lambda ink: Image.fromarray(ink < 0.5),
    "faint": lambda ink: 0.5 + 0.15 * ink,
    "under a lamp": lamp,
    "noisy": lambda ink: np.clip(
        0.2 + 0.6 * ink + np.random.default_rng(0).normal(0, 0.08, ink.shape), 0, 1
    ),
    "shifted": lambda ink: np.roll(ink, (25, -20), axis=(0, 1)),
    "on a wide sheet": lambda ink: np.pad(ink, ((0, 0), (300, 40))),
    "large": lambda ink: np.kron(ink, np.ones((6, 6), np.float32)),
    "small": lambda ink: Image.fromarray(np.uint8(255 * ink)).resize((56, 56)),
    "turned by a camera": turned,
    "specks": lambda ink: np.maximum(
        ink, ndimage.binary_dilation(np.pad([[1.0]], ((9, 270), (200, 79))))
    ),
}


@pytest.mark.parametrize("change", SAME_PICTURE)
def test_a_picture_is_prepared_alike_however_it_comes(ink, change):
    assert alike(SAME_PICTURE[change](ink), ink) > 0.95


def test_a_picture_is_placed_as_mnists_are(ink):
    image = prepare(np.pad(ink, ((0, 200), (0, 0)))).image
    rows, columns = np.flatnonzero(image.any(1)), np.flatnonzero(image.any(0))
    assert 19 <= max(np.ptp(rows), np.ptp(columns)) + 1 <= 21
    center = ndimage.center_of_mass(image.astype(float))
    assert np.abs(np.subtract(center, 14)).max() <= 0.75
    assert image.max() == 255


def test_mnists_own_images_come_out_as_they_went_in(mnist_dir):
    images = flaxmnist.load("mnist", "idx", str(mnist_dir)).test.images[:200]
    assert np.median([alike(image, 255 - image) for image in images]) > 0.99
    correlations = [
        np.corrcoef(prepare(image).image.ravel(), image.ravel())[0, 1]
        for image in images
    ]
    assert np.median(correlations) > 0.95


def test_thin_strokes_are_thickened(ink):
    line = np.zeros((280, 280), np.float32)
    line[40:240, 139:141] = 1
    assert (prepare(line).image > 127).sum(axis=1).max() >= 2


@pytest.mark.parametrize(
    ("picture", "warning"),
    [
        (np.full((50, 50), 200, np.uint8), "no digit found"),
        (
            np.random.default_rng(0).normal(0.5, 0.1, (90, 90)).clip(0, 1),
            "no digit found",
        ),
        (np.ones((1, 1)), "no digit found"),
    ],
)
def test_an_empty_picture_is_warned_of(picture, warning):
    prepared = prepare(picture)
    assert warning in prepared.warnings[0]
    assert not prepared.image.any()


def test_several_digits_are_warned_of_and_a_broken_one_is_not(ink):
    (warning,) = prepare(np.hstack([ink, ink])).warnings
    assert warning == "2 digits, taken for one"
    broken = ink.copy()
    broken[130:136] = 0
    assert prepare(broken).warnings == ()


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((3, 3, 5)), r"shape \[3, 3, 5\]; expected \[height, width\]"),
        (np.zeros((0, 3)), r"shape \[0, 3\]"),
        (np.array([["a"]]), "expected bool, unsigned integers, or floating point"),
        (
            np.zeros((3, 3), np.int64),
            r"array of int64; .* use array.astype\(np.uint8\)",
        ),
        (np.full((3, 3), np.nan), "not finite"),
        (np.full((3, 3), 7.0), r"outside \[0, 1\]; .* divide by 255"),
        ("nowhere.png", "nowhere.png does not exist"),
        ("x" * 100_000, "cannot be opened .File name too long"),
        (Path("/dev/zero"), "'/dev/zero' is not a regular file"),
        (b"no picture" * 10_000, "cannot be read as a picture"),
        (io.BytesIO(b"no picture at all"), "cannot be read as a picture"),
        (io.BytesIO(b""), "cannot be read as a picture"),
        ([[0] * 100_000], "is a list; expected a path, an open file"),
        (None, "None is a NoneType; expected a path"),
    ],
)
def test_what_is_no_picture_is_refused(picture, message):
    with pytest.raises(UserError, match=message) as raised:
        prepare(picture)
    assert len(str(raised.value)) < 400


def test_a_picture_too_large_is_refused_before_it_is_decoded():
    for side in (9_000, 20_000):
        bomb = saved(Image.new("1", (side, side)), format="PNG")
        assert len(bomb.getvalue()) < 100_000
        with pytest.raises(UserError, match="expected at most 64,000,000 pixels"):
            prepare(bomb)


def test_the_drawn_digits_are_always_the_same_and_mostly_unsuspicious():
    assert draw(7, HANDS[1], "photograph").tobytes() == (
        draw(7, HANDS[1], "photograph").tobytes()
    )
    pictures = [
        draw(digit, "first hand", style) for style in STYLES for digit in (3, 7)
    ]
    assert not any(prepare(picture).warnings for picture in pictures)


def test_predict_images_takes_a_run_or_a_state_and_any_picture(finished_run, tmp_path):
    workdir, _ = finished_run
    path = tmp_path / "seven.png"
    draw(7, "first hand", "plain").save(path)
    pictures = [path, str(path), np.asarray(Image.open(path)), Image.open(path)]
    found = flaxmnist.predict_images(pictures, workdir)
    assert len({prediction.digit for prediction in found}) == 1
    for prediction in found:
        np.testing.assert_allclose(prediction.probabilities.sum(), 1, rtol=1e-5)
        assert prediction.top(10)[0] == (
            prediction.label,
            prediction.probabilities.max(),
        )
        assert prediction.label == str(prediction.digit)
    # A state has no temperature.
    run = flaxmnist.open_run(workdir)
    (again,) = flaxmnist.predict_images(pictures[:1], run.state)
    np.testing.assert_allclose(again.logits, found[0].logits, rtol=1e-5)
    np.testing.assert_allclose(again.probabilities, softmax(again.logits), rtol=1e-5)
    temperature = json.loads((workdir / "summary.json").read_text())["temperature"]
    assert temperature == run.calibration.temperature != 1
    np.testing.assert_allclose(
        found[0].probabilities, softmax(again.logits / temperature), rtol=1e-4
    )
    assert flaxmnist.predict_images([], workdir) == []


def test_predict_images_takes_a_single_picture_and_an_array_of_several(
    make_state, tmp_path
):
    state = make_state()
    path = tmp_path / "seven.png"
    draw(7, "first hand", "plain").save(path)
    array = np.asarray(Image.open(path))
    several = np.stack([array, array])
    (expected,) = flaxmnist.predict_images([path], state)
    with path.open("rb") as file:
        for pictures, count in (
            (path, 1),
            (str(path), 1),
            (np.str_(path), 1),
            ([np.bytes_(path.read_bytes())], 1),
            (path.read_bytes(), 1),
            (file, 1),
            (Image.open(path), 1),
            (array, 1),
            (jnp.asarray(array), 1),
            ([jnp.asarray(array)], 1),
            (several, 2),
            (iter(several), 2),
        ):
            found = flaxmnist.predict_images(pictures, state)
            assert len(found) == count
            for prediction in found:
                np.testing.assert_array_equal(
                    prediction.prepared.image, expected.prepared.image
                )
                assert prediction not in {expected}
    for wrong, said in (
        (np.zeros((5, 784)), r"use array.reshape\(-1, 28, 28\);"),
        (None, "None is a NoneType"),
    ):
        with pytest.raises(UserError, match=said):
            flaxmnist.predict_images(wrong, state)
    with pytest.raises(UserError, match=r"^run is a dict; expected a TrainState"):
        flaxmnist.predict_images(several, state.params)


def test_images_of_the_data_are_predicted_as_they_are_unless_they_are_digits(
    finished_run, synthetic
):
    """Clothes of Fashion-MNIST fill their images; digits come from anywhere."""
    state = flaxmnist.open_run(finished_run[0]).state
    images, small = synthetic.test.images[:3], np.zeros((28, 28), np.uint8)
    images = np.maximum(images, 40)
    for given in (
        images,
        [saved(Image.fromarray(each), format="PNG") for each in images],
    ):
        found = flaxmnist.predict_images(given, state, "abcdefghij")
        np.testing.assert_array_equal(
            [prediction.prepared.image for prediction in found], images
        )
    for picture, names in (
        (images[0], ()),
        (draw(5, "first hand", "plain"), "abcdefghij"),
    ):
        (found,) = flaxmnist.predict_images([picture], state, names)
        assert found.prepared.image.shape == small.shape
        assert found.prepared.image.min() == 0


def test_the_command_line_predicts_files(finished_run, tmp_path, capsys, monkeypatch):
    workdir, _ = finished_run
    for digit in (1, 2):
        draw(digit, "first hand", "plain").save(tmp_path / f"{digit}.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG broken")
    monkeypatch.chdir(tmp_path)
    stdin = io.TextIOWrapper(
        io.BytesIO((tmp_path / "1.png").read_bytes()), encoding="utf-8"
    )
    monkeypatch.setattr(sys, "stdin", stdin)
    flags = [f"--workdir={workdir}", "--json", "--top=3", "--save_preprocessed=ready"]
    (tmp_path / "empty").mkdir()
    code = predict.main(["?.png", *flags, "empty", "broken.png", "nope.png", "-"])
    out, err = capsys.readouterr()
    assert code == 1
    records = [json.loads(line) for line in out.splitlines()]
    assert [record["file"] for record in records] == ["1.png", "2.png", "-"]
    for record in records:
        assert len(record["top"]) == 3
        assert record["top"][0]["digit"] == record["digit"] == int(record["label"])
    assert records[0]["top"] == records[2]["top"]
    assert "broken.png cannot be read" in err
    assert "nope.png does not exist" in err
    assert "empty contains no pictures, such as .png or .jpg" in err
    ready = sorted(tmp_path.glob("ready/*.png"))
    assert [path.name for path in ready] == [
        "0000-1.png",
        "0001-2.png",
        "0002-stdin.png",
    ]
    assert Image.open(ready[0]).size == (28, 28)

    assert predict.main([f"--workdir={workdir}", "1.png"]) == 0
    assert capsys.readouterr().out.startswith("1.png  ")
    one, two = (np.asarray(Image.open(f"{digit}.png")) for digit in (1, 2))
    Image.fromarray(np.hstack([one, two])).save("12.png")
    assert predict.main([f"--workdir={workdir}", "12.png"]) == 0
    assert "(2 digits, taken for one; use --read)" in capsys.readouterr().out

    long = "7" * 250
    os.rename("1.png", f"{long}.png")
    assert predict.main([flags[0], flags[-1], f"{long}.png"]) == 0
    assert (tmp_path / "ready" / f"0000-{long[:60]}.png").exists()

    (tmp_path / "empty" / "IMG_1.HEIC").touch()
    assert predict.main([f"--workdir={workdir}", "empty"]) == 1
    assert "empty/IMG_1.HEIC cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["a.png"], "the following arguments are required: --workdir"),
        (["--workdir=nowhere", "a.png"], "nowhere contains no run"),
        (["--workdir=nowhere", "--tpo=3", "a.png"], "did you mean '--top'"),
        (["--workdir=nowhere", "--top=0", "a.png"], "--top=0: expected at least 1"),
        (["--workdir=x", "--split=test", "--json"], "--json has no effect on --split"),
        (["--workdir=x", "--split=test", "--top=2"], "--top has no effect on --split"),
        (["--workdir=x", "--read", "--top=3", "a.png"], "no effect on --read"),
        (["--workdir=x", "--devices=0", "a.png"], "--devices has no effect on pict"),
        (["--workdir=x", "--process_id=1", "a.png"], "--process_id has no effect on"),
        (
            ["--workdir=x", "--config.data.dir=x", "a.png"],
            "--config.data.dir has no effect on pictures",
        ),
    ],
)
def test_a_mistake_on_the_command_line_is_told(flags, message, capsys):
    assert predict.main(flags) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert len(err.splitlines()) <= 2


def test_patterns_find_files_and_do_not_follow_links_to_directories(
    tmp_path, monkeypatch
):
    for path in ("a.png", "7[1].png", "more/b.png", "more/deep/c.png", ".hidden/d.png"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    for index in range(9):  # Each may be followed from within each.
        (tmp_path / f"self{index}").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")
    monkeypatch.chdir(tmp_path)

    def found(*patterns):
        return list(predict._expand(patterns))

    everything = ["7[1].png", "a.png", "more/b.png", "more/deep/c.png"]
    assert found("**/*.png") == everything
    assert found("**") == found("**/**") == everything
    assert found("more/**/*.png") == ["more/b.png", "more/deep/c.png"]
    assert found(f"{tmp_path}/**/deep/**") == [f"{tmp_path}/more/deep/c.png"]
    assert found("[am]*.png", "7[1].png", "no*") == ["a.png", "7[1].png", "no*"]
    (tmp_path / "more/notes.txt").touch()
    (tmp_path / "more/E.JPEG").touch()
    (tmp_path / "empty").mkdir()
    inside = ["more/E.JPEG", "more/b.png", "more/deep/c.png"]
    assert found("more") == found("more/") == inside
    assert found(".") == [f"./{path}" for path in sorted([*everything, inside[0]])]
    assert found("empty", "a.png") == ["empty", "a.png"]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert found("~/more/*.png") == [f"{tmp_path}/more/b.png"]


def test_pictures_of_a_high_energy_are_marked_unless_the_run_is_older(
    finished_run, tmp_path, capsys
):
    workdir = tmp_path / "run"
    shutil.copytree(finished_run[0], workdir)
    path = workdir / "summary.json"
    summary = json.loads(path.read_text())
    assert isinstance(summary["energy_limit"], float)
    picture = tmp_path / "seven.png"
    draw(7, "first hand", "plain").save(picture)

    def predicted(limit, *flags):
        path.write_text(json.dumps(summary | {"energy_limit": limit}))
        assert predict.main([f"--workdir={workdir}", str(picture), *flags]) == 0
        return capsys.readouterr().out

    assert "(not a digit?)" in predicted(-1e9)
    record = json.loads(predicted(-1e9, "--json"))
    assert "not a digit?" in record["warnings"]
    assert record["energy"] > record["energy_limit"] == -1e9
    del summary["energy_limit"], summary["temperature"]
    for limit in (1e9, None):
        assert "not a digit" not in predicted(limit)
    older = flaxmnist.open_run(workdir)
    assert older.summary is not None
    assert older.calibration == UNCALIBRATED
    (other,) = predict_prepared(
        [prepare(draw(7, "first hand", "plain"))],
        flaxmnist.open_run(workdir).state,
        tuple("abcdefghij"),
        Calibration(energy_limit=-1e9),
    )
    assert "unlike the training images" in other.warnings
    for temperature, doubtful in ((1e3, True), (1e-3, False)):
        calibration = Calibration(temperature)
        (one,) = predict_prepared([other.prepared], older.state, (), calibration)
        assert ("low confidence" in one.warnings) == doubtful
    assert other.is_unlike
