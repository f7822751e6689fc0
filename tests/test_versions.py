"""Runs that were saved with other versions of JAX, Flax and Orbax are resumed here.

`python tests/test_versions.py tests/fixtures/saved/NAME` saves such a run with the
installed versions.
"""

import functools
import hashlib
import json
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import ROOT, tiny_config

from flaxmnist.core.sharding import named_leaves
from flaxmnist.rundir.checkpoints import Checkpoints
from flaxmnist.training import loop, resume
from flaxmnist.training.experiment import Experiment

RUNS = ROOT / "tests/fixtures/saved"
STEPS = 20


def config(num_steps=STEPS):
    """A small run whose state has every part that a state may have."""
    return tiny_config(
        num_steps=num_steps,
        eval_every=STEPS,
        checkpoint_every=STEPS,
        summaries=(),
        model={"name": "mlp", "hidden": (4,), "batch_norm": True, "dropout_rate": 0.1},
        optimizer={"name": "adam", "learning_rate": 1e-2},
        ema=0.9,
    )


def digests(tree):
    """Returns the SHA-256 of each array of a checkpoint, by name."""
    state = tree["state"].replace(key=jax.random.key_data(tree["state"].key))
    return {
        name: hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest()
        for name, leaf in named_leaves(tree | {"state": state})
    }


def restored(workdir):
    """Returns the arrays of the newest checkpoint."""
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        tree, _ = checkpoints.restore(
            STEPS, functools.partial(resume.expected, Experiment.build(config()))
        )
    return tree


@pytest.mark.parametrize("path", sorted(RUNS.glob("*")), ids=lambda path: path.name)
def test_a_run_of_other_versions_is_restored_to_the_bit_and_resumes(
    path, tmp_path, capsys
):
    run = shutil.copytree(path, tmp_path / "run")
    assert digests(restored(run)) == json.loads((run / "sha256.json").read_text())
    summary = loop.train_and_evaluate(config(STEPS + 5), run)
    assert f"resumes at step {STEPS} of {STEPS + 5}" in capsys.readouterr().out
    assert summary.step == STEPS + 5
    assert summary.versions["jax"] == jax.__version__
    assert summary.test.accuracy > 0.3


if __name__ == "__main__":
    workdir = Path(sys.argv[1])
    loop.train_and_evaluate(config(), workdir)
    text = json.dumps(digests(restored(workdir)), indent=1)
    (workdir / "sha256.json").write_text(text + "\n")
    for name in ("tensorboard", ".lock"):  # Resuming needs neither.
        path = workdir / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
