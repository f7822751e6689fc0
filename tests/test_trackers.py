"""The examples of hooks send the figures of a run to trackers, without a network."""

import importlib.util
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

PROGRAM = """
import pathlib, runpy, sys
main = runpy.run_path(sys.argv[1])["main"]
options = dict(num_steps=40, log_every=20, eval_every=20, mesh={"data": 1})
run = main("softmax:smoke", data="synthetic", workdir="run", report=False, **options)
pathlib.Path("accuracy").write_text(str(run.summary.test.accuracy))
"""


def train(name: str, folder: Path) -> float:
    """Runs an example in a process of its own; returns the accuracy of its run."""
    if not importlib.util.find_spec(name):
        pytest.skip(f"needs the package {name}: pip install -e '.[trackers]'")
    command = [sys.executable, "-c", PROGRAM, ROOT / f"examples/track_{name}.py"]
    env = os.environ | {
        "WANDB_MODE": "offline",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "TRACKIO_DIR": str(folder / "trackio"),
        "HF_HUB_OFFLINE": "1",
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(
        command, cwd=folder, env=env, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return float((folder / "accuracy").read_text())


@pytest.mark.slow
def test_wandb(tmp_path):
    train("wandb", tmp_path)
    (log,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    content = log.read_bytes()
    for key in (b"train/loss", b"validation/accuracy", b"final/test/accuracy"):
        assert key in content


@pytest.mark.slow
def test_mlflow(tmp_path):
    accuracy = train("mlflow", tmp_path)
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        rows = database.execute("SELECT key, step, value FROM metrics").fetchall()
    found = {(key, step): value for key, step, value in rows}
    assert {("train/loss", 20), ("train/loss", 40)} < found.keys()
    assert found["final/test/accuracy", 40] == accuracy


@pytest.mark.slow
def test_trackio(tmp_path):
    accuracy = train("trackio", tmp_path)
    with sqlite3.connect(tmp_path / "trackio" / "mnist.db") as database:
        rows = database.execute("SELECT step, metrics FROM metrics").fetchall()
    found = {
        (key, step): value
        for step, one in rows
        for key, value in json.loads(one).items()
    }
    assert {("train/loss", 20), ("train/loss", 40)} < found.keys()
    assert found["final/test/accuracy", 40] == accuracy
