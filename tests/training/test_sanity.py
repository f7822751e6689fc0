"""What is tried before training, and what the doctor says."""

import re
from unittest.mock import Mock

import jax
import pytest
from helpers import save_idx, tiny_config, write_idx

from flaxmnist.__main__ import main
from flaxmnist.cli import doctor, train
from flaxmnist.runtime import devices
from flaxmnist.training import sanity


def test_a_dry_run_trains_a_step_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ["--config=mlp:smoke", "--config.mesh.data=1", "--dry_run"]
    assert train.main(flags) == 0
    text = capsys.readouterr().out
    assert re.search(r"mlp \([\d,]+ parameters\), on synthetic", text)
    assert re.search(r"a training step: loss \d", text)
    assert re.search(r"a batch evaluated: loss \d", text)
    assert list(tmp_path.iterdir()) == []


def test_a_batch_is_memorized(capsys):
    model = {"name": "mlp", "hidden": (32,), "dropout_rate": 0.5}
    assert sanity.overfit(tiny_config(model=model), 1)
    assert "memorized: 100 examples" in capsys.readouterr().out


def test_distortions_may_end_later_than_a_trial(monkeypatch):
    monkeypatch.setattr(sanity, "MAX_STEPS", 5)
    model = {"name": "mlp", "hidden": (32,)}
    augment = {"rotate": 5.0, "stop_before_end": 10}
    sanity.overfit(tiny_config(model=model, augment=augment), 1)


def test_what_cannot_learn_is_told(monkeypatch, capsys):
    monkeypatch.setattr(sanity, "MAX_STEPS", 100)
    model = {"name": "mlp", "hidden": (32,)}
    optimizer = {"name": "sgd", "learning_rate": 1e-9}
    assert not sanity.overfit(tiny_config(model=model, optimizer=optimizer), 2)
    assert "not memorized: 200 examples" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--overfit=0"], "--overfit=0: expected 1 or more batches"),
        (["--overfit=99"], "--overfit 99: expected at most 15 batches of 128"),
        (["--dry_run", "--overfit=1"], "--dry_run and --overfit exclude each other"),
        (
            ["--dry_run", "--mode=eval", "--workdir=x"],
            "unknown argument '--dry_run' for flaxmnist eval",
        ),
    ],
)
def test_a_mistake_is_told(flags, message, capsys):
    assert main(["--config=mlp:smoke", "--config.mesh.data=1", *flags]) == 2
    assert message in capsys.readouterr().err


def test_the_doctor_says_what_there_is(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("FLAXMNIST_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(devices, "start", lambda *args, **options: None)
    # Of this machine, neither a GPU, a full disk nor the flags are problems.
    monkeypatch.setattr(doctor, "_MIN_DISK", 0)
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    flags = ["--platform=cpu"]
    assert doctor.main(flags) == 1
    assert "problem: " in capsys.readouterr().out
    write_idx(tmp_path, counts=(240, 20))
    assert doctor.main(flags) == 0
    text = capsys.readouterr().out
    for part in (f"jax {jax.__version__}", "CPU cores", str(tmp_path), "no problem"):
        assert part in text
    images, labels, *_ = write_idx(tmp_path, counts=(240, 20))
    save_idx(tmp_path, [images, labels, images[:20], labels[:20]])
    problems = " ".join(doctor.problems_with_devices("cpu"))
    assert "20 of the 20 test images of test_the_doctor" in problems


def test_the_doctor_says_if_flaxmnist_is_not_installed(monkeypatch):
    def missing(name):
        raise doctor.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.importlib.metadata, "requires", missing)
    assert "flaxmnist is not installed" in next(doctor.problems_before_start())


def test_the_doctor_lists_a_path_that_cannot_be_used_once(monkeypatch, capsys):
    monkeypatch.setenv("FLAXMNIST_DATA_DIR", "http://host/mnist")
    monkeypatch.setattr(devices, "start", lambda *args, **options: None)
    monkeypatch.setattr(doctor.subprocess, "run", lambda *_, **__: Mock(returncode=0))
    assert doctor.main([]) == 1
    text = capsys.readouterr().out
    assert text.count("problem: FLAXMNIST_DATA_DIR='http://host/mnist' is a URL") == 1
    assert "CPU cores" in text
    assert "caches: " in text


def test_the_doctor_looks_at_machines_without_their_platform(monkeypatch, capsys):
    monkeypatch.setenv("JAX_PLATFORMS", "nope")
    assert doctor.main([]) == 1
    assert "jax does not start (" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, "JAX does not find it: pip install"),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, "JAX does not find it: pip install"),
        ({"CUDA_VISIBLE_DEVICES": ""}, "CUDA_VISIBLE_DEVICES='' hides it: unset it"),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, "DEVICES='-1' hides it: unset it"),
        ({"JAX_PLATFORMS": "cpu"}, "JAX_PLATFORMS='cpu' hides it: unset it"),
    ],
)
def test_the_doctor_names_the_variable_that_hides_a_gpu(environment, said, monkeypatch):
    for name in ("CUDA_VISIBLE_DEVICES", "JAX_PLATFORMS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert said in next(doctor.problems_with_devices(None))
    assert "GPU" not in next(doctor.problems_with_devices("cpu"), "")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("XLA_FLAGS", "--xla_cpu_use_thunk_runtime=false", "no longer supported"),
        ("JAX_DISABLE_JIT", "1", "a hundred times slower"),
        ("JAX_ENABLE_X64", "True", "float64"),
    ],
)
def test_the_doctor_knows_bad_flags(name, value, message, monkeypatch, capsys):
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(devices, "start", lambda *args, **options: None)
    monkeypatch.setattr(doctor.download, "reachable", lambda url: True)
    assert doctor.main([]) == 1
    text = capsys.readouterr().out
    assert f"problem: {name}={value!r}" in text
    assert message in text
