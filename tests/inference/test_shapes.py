"""A run on small colour images with named classes: what comes after its training."""

import io
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from helpers import ROOT, tiny_config
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import flaxmnist
from flaxmnist import UserError, open_run
from flaxmnist.cli import demo, predict
from flaxmnist.core.steps import predict_step
from flaxmnist.data import Dataset
from flaxmnist.inference.fit import fit

SHAPE, NAMES = (12, 10, 3), ("cat", "dog", "sea <horse>")


def make(count):
    """Returns noisy images, each with a bright channel that gives its class."""
    labels = np.arange(count) % len(NAMES)
    images = np.random.default_rng(count).integers(0, 60, (count, *SHAPE))
    images[np.arange(count), ..., labels] += 150
    return images.astype(np.uint8), labels


@pytest.fixture(scope="module")
def dataset():
    images, labels = make(30)
    labels[-1] = 0  # Its image is of the last class: a mistake.
    return Dataset.from_arrays(make(240), (images, labels), NAMES)


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory):
    """The directory of a finished run with a report. Do not change it."""
    workdir = tmp_path_factory.mktemp("colour") / "run"
    config = tiny_config(
        model={"name": "softmax"},
        data={"source": "auto"},
        batch_size=20,
        summaries=("filters", "mistakes"),
        report=True,
    )
    summary = flaxmnist.train_and_evaluate(config, workdir, data=dataset)
    assert summary.test.accuracy == 29 / 30
    return workdir


@pytest.fixture(scope="module")
def run(trained, dataset):
    return open_run(trained, data=dataset)


def png(array, **options):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG", **options)
    return file.getvalue()


def test_an_image_of_the_models_shape_is_predicted_unchanged(run, dataset, trained):
    images = dataset.test.images[:3]
    logits = np.asarray(predict_step(run.state, images)["logits"])
    wanted = run.calibration.probabilities(logits)
    for pictures in (images, [png(image) for image in images], images / 255):
        found = run.predict(pictures)
        assert [each.label for each in found] == list(NAMES)
        probabilities = [each.probabilities for each in found]
        np.testing.assert_allclose(probabilities, wanted, rtol=1e-5)
    (one,) = flaxmnist.predict_images(images[1], trained)
    assert one.top(9)[0] == ("dog", one.probabilities.max())
    assert len(one.top(9)) == 3
    with pytest.raises(AttributeError, match="not the ten digits; use label"):
        _ = one.digit
    (named,) = flaxmnist.predict_images(images[1], run.state, "abc")
    (numbered,) = flaxmnist.predict_images(images[1], run.state)
    assert (named.label, numbered.label) == ("b", "1")
    for pictures, names, message in (
        (images.reshape(3, -1), (), r"use array.reshape\(-1, 12, 10, 3\); for one"),
        (images, ("a", "b"), "2 class names for a model of 3 classes"),
    ):
        with pytest.raises(UserError, match=message):
            flaxmnist.predict_images(pictures, run.state, names)
    # A black image is an image, too.
    assert run.predict(np.zeros(SHAPE, np.uint8))[0].label in NAMES


def test_a_picture_is_cropped_to_the_centre_turned_and_given_the_channels():
    image = make(1)[0][0]
    wide = np.pad(image, ((0, 0), (10, 10), (0, 0)), constant_values=255)
    np.testing.assert_array_equal(fit(wide, SHAPE).image, image)
    large = np.kron(wide, np.ones((8, 8, 1), np.uint8))
    assert abs(fit(large, SHAPE).image.astype(int) - image).mean() < 12
    exif = Image.Exif()
    exif[0x0112] = 6
    np.testing.assert_array_equal(
        fit(png(np.rot90(image), exif=exif), SHAPE).image, image
    )
    # A dark drawing on nothing is a drawing on white, unless the model sees opacity.
    drawing = np.dstack([image // 4, np.eye(12, 10, dtype=np.uint8) * 255])
    on_white = np.where(drawing[..., 3:] > 0, drawing[..., :3], 255)
    np.testing.assert_array_equal(fit(png(drawing), SHAPE).image, on_white)
    light = np.dstack([image // 4 + 190, drawing[..., 3]])
    on_black = np.where(light[..., 3:] > 0, light[..., :3], 0)
    np.testing.assert_array_equal(fit(light, SHAPE).image, on_black)
    np.testing.assert_array_equal(fit(drawing, (12, 10, 4)).image, drawing)
    gray = image[..., 0]
    for picture in (gray, png(gray), png(gray.astype(np.uint16) * 257)):
        np.testing.assert_array_equal(fit(picture, (12, 10, 1)).image, gray)
        np.testing.assert_array_equal(
            fit(picture, (12, 10, 3)).image, np.dstack([gray] * 3)
        )
        np.testing.assert_array_equal(
            fit(picture, (12, 10, 2)).image, np.dstack([gray, np.full_like(gray, 255)])
        )


def test_the_command_line_prints_the_names_of_classes(
    trained, dataset, tmp_path, capsys
):
    path = tmp_path / "image.png"
    path.write_bytes(png(dataset.test.images[2]))
    ready = tmp_path / "ready"
    flags = [f"--workdir={trained}", f"--save_preprocessed={ready}", str(path)]
    assert predict.main([*flags, "--json", "--top=9"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["label"], len(record["top"])) == ("sea <horse>", 3)
    assert record["top"][0].keys() == {"label", "probability"}
    assert (ready / "0000-image.png").exists()
    assert predict.main(flags) == 0
    assert capsys.readouterr().out.startswith(f"{path}  sea <horse>  ")


def test_the_page_takes_pictures_of_other_shapes(trained, dataset):
    saved = open_run(trained)
    assert "this model takes images of 12×10×3" in demo.page(saved)
    values = demo.answer(saved, io.BytesIO(png(dataset.test.images[2])))
    assert values["text"] == "sea <horse>"
    assert len(values["bars"]) == 3
    assert {"seen", "mattering"} <= values.keys()


def test_a_split_is_evaluated_and_predicted(run):
    assert run.evaluate("test").accuracy == 29 / 30
    rows = [json.loads(line) for line in run.predict_split("test").open()]
    assert all(len(row["probabilities"]) == 3 for row in rows)
    assert [row["index"] for row in rows if row["label"] != row["classes"]] == [29]


def test_reports_and_tensorboard_show_colours_and_names(trained):
    page = (trained / "report.html").read_text()
    for part in (
        "images of 12×10×3 in\n3 classes",
        '<th scope="row">cat</th><td>11</td>',
        '<th scope="row">sea &lt;horse&gt;</th><td>9</td>',
        'alt="Test image 29"',
    ):
        assert part in page
    for split, name in (("train", "filters"), ("validation", "mistakes")):
        events = EventAccumulator(str(trained / "tensorboard" / split)).Reload()
        encoded = events.Images(name)[0].encoded_image_string
        assert Image.open(io.BytesIO(encoded)).mode == "RGB"
    for name in ("mistakes", "filters"):
        pixels = np.asarray(Image.open(trained / "plots" / f"{name}.png"))[..., :3]
        assert np.ptp(pixels, axis=2).max() > 100


@pytest.mark.parametrize("format", ["stablehlo", "onnx", "numpy"])
def test_every_export_has_the_shape_and_the_names(
    format, trained, dataset, tmp_path, capsys
):
    if format == "onnx":
        pytest.importorskip("jax2onnx", reason="needs 'flaxmnist[onnx]'")
    workdir = shutil.copytree(trained, tmp_path / "run")
    folder = open_run(workdir, data=dataset).export(format)
    assert "over 30 test images" in capsys.readouterr().out
    assert (folder / "labels.txt").read_text() == "cat\ndog\nsea <horse>\n"
    card = (folder / "README.md").read_text()
    assert "12×10 pixels (height × width), RGB" in card
    assert "3 classes, in this order: cat, dog, sea <horse>." in card
    assert "12, 10, 3" in card
    assert "MNIST" not in card
    if format == "numpy":
        np.save(tmp_path / "images.npy", dataset.test.images[:3])
        command = [sys.executable, folder / "predict.py", tmp_path / "images.npy"]
        done = subprocess.check_output(command, text=True)
        assert [line.rpartition("  ")[0] for line in done.splitlines()] == [*NAMES]
        np.save(tmp_path / "images.npy", dataset.test.images[:3, ..., 0])
        done = subprocess.run(command, capture_output=True, text=True)
        assert "(3, 12, 10); expected uint8, or" in done.stderr
        assert "(count, 12, 10, 3)" in done.stderr
        assert done.returncode == 1


def test_a_run_of_an_older_version_predicts_digits(tmp_path):
    saved = sorted((ROOT / "tests/fixtures/saved").glob("*"))[0]
    run = open_run(shutil.copytree(saved, tmp_path / "run"))
    picture = np.zeros((28, 28), np.uint8)
    picture[4:24, 13:16] = 255
    (prediction,) = run.predict(picture)
    assert prediction.label == str(prediction.digit)
    assert prediction.probabilities.shape == (10,)
