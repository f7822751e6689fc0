"""The examples run as they are, on data that needs no network."""

import runpy
import subprocess
import sys

import numpy as np
import pytest
from helpers import ROOT, save_idx
from PIL import Image

import flaxmnist
from flaxmnist.data import Dataset, Split

MINIMAL = ROOT / "examples/minimal.py"


def test_the_minimal_example_learns_on_the_bundled_subset(capsys):
    result = runpy.run_path(str(MINIMAL))["main"](steps=60)
    output = capsys.readouterr().out
    assert "BUNDLED SUBSET" in output
    assert f"test accuracy {result['accuracy']:.2%} of 500 images" in output
    assert result["accuracy"] > 0.6


def test_the_minimal_example_is_one_page_and_describes_its_options():
    assert len(MINIMAL.read_text(encoding="utf-8").splitlines()) <= 80
    command = [sys.executable, MINIMAL, "--help"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "--steps" in text
    assert "--seed" in text


def main_of(name):
    """Returns the function `main` of an example."""
    return runpy.run_path(str(ROOT / f"examples/{name}.py"))["main"]


@pytest.fixture
def tiny(tmp_path):
    """Options of a run of a few seconds."""
    return {
        "workdir": tmp_path / "run",
        "model": {"name": "softmax"},
        "batch_size": 16,
        "num_epochs": 2,
        "mesh": {"data": 1},
        "optimizer": {"learning_rate": 1e-2},
        "report": False,
    }


@pytest.fixture(scope="module")
def few():
    """Four hundred training images that a small network can tell apart."""
    data = flaxmnist.load("synthetic", "synthetic")
    parts = (
        Split(part.images[:400], part.labels[:400])
        for part in map(data.split, flaxmnist.data.SPLITS)
    )
    return Dataset("few", "arrays", *parts)


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=str)
def test_an_example_is_short_and_names_its_command(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 120
    assert f"examples/{path.name}" in text.split('"""')[1]


@pytest.mark.slow
def test_arrays(tiny, capsys):
    run = main_of("arrays")(**tiny)
    assert run.dataset.class_names == ("circle", "square", "triangle")
    assert run.summary.test.accuracy > 0.5
    assert "[('circle', 0." in capsys.readouterr().out


@pytest.mark.slow
def test_image_folder(tiny, tmp_path, capsys):
    rng = np.random.default_rng(0)
    for channel, name in enumerate(("red", "green")):
        for index in range(30):
            image = rng.integers(0, 80, (12, 12, 3), np.uint8)
            image[..., channel] += 120
            path = tmp_path / f"colours/{name}/{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    del tiny["model"]
    run = main_of("image_folder")(tmp_path / "colours", [path], **tiny)
    assert run.dataset.image_shape == (12, 12, 3)
    assert (run.config.model.name, run.config.augment.rotate) == ("convnet", 10)
    assert f"{path}: green " in capsys.readouterr().out


@pytest.mark.slow
def test_emnist_letters(tiny, tmp_path, capsys):
    rng = np.random.default_rng(0)
    labels = np.arange(78, dtype=np.uint8) % 26 + 1
    images = rng.integers(0, 256, (78, 28, 28)).astype(np.uint8)
    names = [
        f"emnist-letters-{split}-{kind}-ubyte"
        for split in ("train", "test")
        for kind in ("images-idx3", "labels-idx1")
    ]
    save_idx(tmp_path / "emnist", [images, labels] * 2, names)
    run = main_of("emnist_letters")(tmp_path / "emnist", **tiny)
    assert "".join(run.dataset.class_names) == "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    np.testing.assert_array_equal(
        run.dataset.test.images, images.swapaxes(1, 2), strict=True
    )
    assert " is taken for " in capsys.readouterr().out


@pytest.mark.slow
def test_a_vision_transformer_with_its_optimizer(tiny, few):
    del tiny["model"], tiny["optimizer"]
    changes = {"model.depth": 1, "model.patch": 9, "optimizer.clip": 0.5}
    path = ROOT / "examples/vit.py"
    run = flaxmnist.train(path, data=few, **tiny | changes)
    decays = runpy.run_path(str(path))["matrices"](run.state.params)
    query = decays["Block_0"]["MultiHeadDotProductAttention_0"]["query"]
    assert decays["Dense_0"] == query == {"kernel": True, "bias": False}
    assert run.summary.test.accuracy > 0.5
    assert len(run.predict(few.test.images[:2])) == 2


@pytest.mark.slow
def test_per_example_gradients_find_wrong_labels(few):
    assert main_of("per_example_gradients")(few, epochs=10, share=0.05) > 0.5


@pytest.mark.slow
def test_distillation(tiny, few, capsys):
    tiny |= {"data": few, "teacher": "cnn", "epochs": 5}
    result = main_of("distillation")(**tiny)
    assert set(result) == {"teacher", "student", "distilled"}
    assert min(result.values()) > 0.5
    assert f"distilled: {result['distilled']:.2%}" in capsys.readouterr().out
