"""The benchmarks run: what they measure is not tested, but that they measure it."""

import io
import json
import shutil
import subprocess
import sys
import types
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from benchmarks import accelerator, corruptions, cross_validation, turns, worker
from benchmarks.photographs import digits, numbers, others, photograph, score
from benchmarks.photographs.inks import Handwriting
from benchmarks.photographs.sample import Sample
from flaxmnist.config import load, override
from flaxmnist.runtime import startup
from flaxmnist.training import loop


@pytest.mark.slow
def test_the_accelerator_benchmark_runs_on_cpu(tmp_path, capsys):
    path = tmp_path / "figures.json"
    path.write_text(json.dumps({"device": "another", "runs": {}}))
    accelerator.main(["--quick", f"--output={path}"])
    results = json.loads(path.read_text())
    assert results.keys() == {"device", "softmax float32 32"}
    assert results["device"]["platform"] == "cpu"
    figures = results["softmax float32 32"]
    assert figures["n"] == 2
    assert figures["compile_seconds"].keys() == {"train_steps", "train_step", "flax"}
    rates = figures["images_per_second"]
    assert rates.keys() == {"train_steps", "train_step", "flax", "evaluation"}
    for rate in rates.values():
        assert 0 < rate["min"] <= rate["median"] <= rate["max"]
    assert figures["peak_bytes"] is None
    assert figures["parity"] < 1e-5
    said = capsys.readouterr().out
    assert "softmax float32 32, n=2" in said
    assert "peak memory unknown" in said

    # What was measured on the same device stays.
    results["runs"] = {"kept": True}
    path.write_text(json.dumps(results))
    accelerator.benchmark(path, [], lambda task: accelerator.WORK[task](), 1, 0, ["-"])
    assert json.loads(path.read_text())["runs"] == {"kept": True}


@pytest.mark.slow
def test_members_train_as_alone(tmp_path, monkeypatch, synthetic, capsys):
    """A member of a program of several learns what a run of its seed learns."""
    monkeypatch.setattr(cross_validation, "load_mnist", lambda: synthetic)
    monkeypatch.setattr(cross_validation, "FOLDS", 5)
    options = {"num_epochs": 1, "optimizer.learning_rate": 1e-4}
    reported = {"name": "reported", "options": {}, "seeds": [0, 3]}
    folds = {"name": "folds", "options": {"batch_size": 64}}
    path = tmp_path / "variations.json"
    variations = {"variations": [folds, reported]}
    path.write_text(
        json.dumps({"config": "mlp:smoke", "options": options} | variations)
    )
    cross_validation.main([str(path)])
    folds, reported = json.loads(path.read_text())["variations"]
    assert len(folds["errors"]) == len(folds["errors_translated"]) == 5
    config = override(load("mlp:smoke"), options | {"seed": 3})
    alone = loop.train_and_evaluate(config, tmp_path / "run", data=synthetic)
    accuracy = alone.test.accuracy
    count = len(synthetic.test)
    assert reported["test"]["errors"][1] == round(count * (1 - accuracy))
    before = path.read_text()
    cross_validation.main([str(path)])
    assert path.read_text() == before
    assert "folds: " in capsys.readouterr().out


@pytest.mark.slow
def test_variations_are_measured_in_turns(monkeypatch, capsys):
    monkeypatch.setattr(turns, "IMAGES", 160)
    turns.main(["mlp:smoke", "{}", '{"batch_size": 32}'])
    *_, first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("{}: {'training': ")
    assert second.startswith("""{"batch_size": 32}: {'training': """)
    assert "'evaluation': 0" not in first + second


def test_arrays_of_other_bits_are_counted(finished_run, tmp_path, monkeypatch, capsys):
    def train(workdir, flags, kill_after=None):
        if workdir.exists():
            return
        shutil.copytree(finished_run[0], workdir)
        if workdir.name == "again":
            path = workdir / "checkpoints/40/record/metadata"
            record = json.loads(path.read_text())
            record["checksums"]["state/params/Dense_0/bias"] += 1
            path.write_text(json.dumps(record))

    monkeypatch.setattr(accelerator, "train", train)
    found = accelerator.compare_runs(tmp_path)
    assert found["again_differing"] == 1
    assert found["resumed_differing"] == 0
    accelerator.print_runs(found)
    said = capsys.readouterr().out
    assert f"trained again: 1 of {found['arrays']} arrays differ" in said
    assert "killed and resumed: equal bits" in said


def test_corrupted_images_are_always_the_same(synthetic):
    images = synthetic.test.images[:6]
    before = images.copy()
    for name in corruptions.CORRUPTIONS:
        changed = corruptions.corrupt(name, images)
        assert changed.shape == images.shape
        assert changed.dtype == np.uint8
        np.testing.assert_array_equal(changed, corruptions.corrupt(name, images))
        assert all(map(np.any, changed != images)), name
    np.testing.assert_array_equal(images, before)


@pytest.mark.slow
def test_the_measured_start_ends_with_the_first_step(tmp_path, monkeypatch):
    class Ended(BaseException):
        pass

    monkeypatch.setattr(startup, "prepare", lambda: None)
    monkeypatch.setattr(startup, "start_garbage_collection", lambda: None)
    monkeypatch.setattr(loop, "compile_reports", loop.compile_reports)
    monkeypatch.setattr(worker, "end", mock.Mock(side_effect=Ended))
    with pytest.raises(Ended):
        worker.first_step("flaxmnist", tmp_path)


@pytest.mark.slow
def test_the_operations_of_a_step_are_measured_by_layer():
    command = [sys.executable, "-m", "benchmarks.operations", "mlp", "32"]
    lines = subprocess.run(command, check=True, stdout=-1, text=True).stdout
    *times, total = (float(line.split()[0]) for line in lines.splitlines())
    assert "Dense_0  backward  products" in lines
    assert sum(times) == pytest.approx(total, abs=0.01 * len(times))


@pytest.mark.slow
def test_runs_of_the_command_line_are_killed_resumed_and_compared(tmp_path):
    flags = [flag for flag in accelerator.FLAGS if flag != "--config=cnn"]
    flags += ["--config=mlp:smoke", "--platform=cpu"]
    found = accelerator.compare_runs(tmp_path, flags, kill_after=20)
    assert found["arrays"] > 10
    assert found["again_differing"] == found["resumed_differing"] == 0
    with pytest.raises(RuntimeError, match=r"exit code 2: flaxmnist: .*learning_rate"):
        accelerator.train(
            tmp_path / "wrong", ["--config=mlp", "--config.optimizer.learning_rate=0"]
        )


@pytest.fixture
def small_photographs(monkeypatch):
    monkeypatch.setattr(photograph, "SHAPES", ((160, 120),))
    monkeypatch.setattr(numbers, "SHAPES", ((160, 240),))
    monkeypatch.setattr(others, "SHAPES", ((400, 400),))
    # A ring stands for each of the ten digits.
    y, x = np.mgrid[-1:1:28j, -1:1:28j]
    ring = 255 * (abs(np.hypot(1.4 * x, y) - 0.6) < 0.15)
    return Handwriting(np.stack([ring.astype(np.uint8)] * 10), np.arange(10))


def test_photographs_of_each_condition_are_the_same_each_time(small_photographs):
    hand, files = small_photographs, []
    of_any_size = [
        name
        for name, kind in digits.CONDITIONS.items()
        if getattr(kind, "shape", "none") is None or hasattr(kind, "form")
    ]
    assert len(of_any_size) == len(digits.CONDITIONS) - 7
    for index, name in enumerate(of_any_size):
        files.append(digits.take(name, index, "choose", hand).file)
    for index, name in enumerate(others.CONDITIONS):
        files.append(others.take(name, index, "choose").file)
    for index, name in enumerate(numbers.CONDITIONS[::3]):
        sample = numbers.take(name, index, "choose", hand)
        files.append(sample.file)
        height, width = 160, 240
        assert len(sample.boxes) == sum(map(str.isdigit, sample.text)) >= 1
        for left, top, right, bottom in sample.boxes:
            assert 0 <= top < bottom <= height
            assert 0 <= left < right <= width
    assert len(set(files)) == len(files)
    for file in files:
        pixels = np.asarray(Image.open(io.BytesIO(file)))
        assert pixels.std() > 0.5

    name = "desk on 3 sides"
    first, again = (digits.take(name, 3, "choose", hand) for _ in range(2))
    assert first == again
    assert first.file != digits.take(name, 3, "report", hand).file
    assert first.file != digits.take(name, 13, "choose", hand).file


def test_readings_are_scored_by_digits_and_boxes():
    boxes = ((0, 0, 10, 10), (0, 20, 10, 30), (20, 0, 30, 10))
    sample = Sample("zip code, plain", 0, "1-2\n3", b"", boxes)

    def scored(text, *found):
        made = [types.SimpleNamespace(box=box, warnings=()) for box in found]
        reading = types.SimpleNamespace(text=text, digits=made, warnings=())
        return score.number_answer(sample, reading)

    right = scored("12\n3", *boxes)
    assert (right.digits, right.right, right.extra, right.boxes) == (3, 3, 0, 3)
    assert right.is_whole
    # One digit too many, one box for two digits, one that is too small.
    wrong = scored("1 23\n7", (0, 0, 10, 30), (0, 20, 4, 30), boxes[2])
    assert (wrong.right, wrong.extra, wrong.boxes) == (3, 1, 1)
    assert not wrong.is_whole
    assert not wrong.is_flagged
    assert not scored("123", *boxes).is_whole
    assert score.overlap(boxes[0], (0, 5, 10, 15)) == pytest.approx(1 / 3)
