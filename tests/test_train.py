"""Whole runs: what they leave, and that nothing of it is lost."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import tiny_config

from flaxmnist import config as configs
from flaxmnist import main, train
from flaxmnist.checkpoint import Checkpoints
from flaxmnist.checks import UserError
from flaxmnist.run import build


def lines(workdir):
    text = (Path(workdir) / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def timeless(records):
    drop = ("images_per_second",)
    return [{k: v for k, v in record.items() if k not in drop} for record in records]


def saved(config, workdir, step=None):
    """The arrays and the record of a checkpoint."""
    checkpoints = Checkpoints(Path(workdir) / "checkpoints", read_only=True)
    step = checkpoints.steps[-1] if step is None else step
    tree, record = checkpoints.restore(
        step, train.abstract_tree(build(config)), lambda record: None
    )
    tree["state"] = tree["state"].replace(key=jax.random.key_data(tree["state"].key))
    return jax.device_get(tree), record


def assert_identical(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_what_a_run_leaves(finished_run):
    workdir, summary = finished_run
    assert summary["test"]["accuracy"] > 0.8
    on_disk = json.loads((workdir / "summary.json").read_text())
    assert on_disk["test"] == summary["test"]
    assert on_disk["dataset"]["counts"] == {
        "train": 2_000,
        "validation": 500,
        "test": 500,
    }
    for split, count in on_disk["dataset"]["counts"].items():
        assert on_disk[split]["count"] == count
    assert on_disk["step"] == 40
    seconds = on_disk["seconds"]
    parts = sum(value for name, value in seconds.items() if name != "total")
    assert parts == pytest.approx(seconds["total"], abs=0.1)
    assert {"startup", "compile", "train", "evaluate"} < set(seconds)
    assert on_disk["images_per_second"] > 0
    assert on_disk["devices"]["count"] == 1
    assert on_disk["versions"]["jax"] == jax.__version__
    assert on_disk["model"] == {"name": "cnn", "parameters": 3_578}
    config = configs.from_json((workdir / "config.json").read_text())
    assert configs.differences(config, tiny_config()) == []

    records = lines(workdir)
    assert [(r["step"], r["split"]) for r in records] == [
        (10, "train"),
        (20, "train"),
        (20, "validation"),
        (30, "train"),
        (40, "train"),
        (40, "validation"),
    ]
    for record in records:
        assert record["epoch"] == record["step"] / 20
        assert {"loss", "accuracy"} < set(record)
        trained = {"learning_rate", "images_per_second"} <= set(record)
        assert trained == (record["split"] == "train")
        if trained:  # The rate of the last update.
            rate = 1e-2 * 0.95 ** ((record["step"] - 1) / 20)
            assert record["learning_rate"] == pytest.approx(rate)


def shown(workdir, split, name="loss"):
    """The steps and values that TensorBoard shows."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(workdir / "tensorboard" / split)).Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_tensorboard_shows_the_same_figures(finished_run):
    workdir, _ = finished_run
    for split, name in (("train", "images_per_second"), ("validation", "accuracy")):
        written = [(r["step"], r[name]) for r in lines(workdir) if r["split"] == split]
        assert np.array(shown(workdir, split, name)) == pytest.approx(np.array(written))


KILLED = """
import os, signal, sys
from flaxmnist import main, writers

write = writers.MetricsWriter.write
def write_and_die(self, record):
    write(self, record)
    if (record["step"], record["split"]) == (170, "validation"):
        os.kill(os.getpid(), signal.SIGKILL)
writers.MetricsWriter.write = write_and_die
main.main(sys.argv[1:])
"""
# 40 steps an epoch: step 170 is in the middle of the fifth, and what is written of it
# has no checkpoint yet. Logs, evaluations and checkpoints fall on different steps.
FLAGS = [
    "--config=cnn:smoke",
    "--config.num_steps=300",
    "--config.batch_size=50",
    "--config.log_every=34",
    "--config.eval_every=85",
    "--config.checkpoint_every=25",
    "--num_cpu_devices=1",
]


def command(flags, *, script=None):
    start = ["-c", script] if script else ["-m", "flaxmnist.main"]
    return subprocess.run(
        [sys.executable, *start, *flags], capture_output=True, text=True, timeout=240
    )


@pytest.mark.parametrize("placement", ["device", "host"])
def test_killed_and_resumed_is_bit_identical(placement, tmp_path):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    flags = [*FLAGS, f"--config.data.placement={placement}"]
    done = command([*flags, f"--workdir={undisturbed}"])
    assert done.returncode == 0, done.stderr
    flags.append(f"--workdir={killed}")
    assert command(flags, script=KILLED).returncode == -signal.SIGKILL
    resumed = command(flags)
    assert resumed.returncode == 0, resumed.stderr
    assert "resumes at step 1" in resumed.stdout
    config = configs.from_json((undisturbed / "config.json").read_text())
    config.mesh.data = 1
    ours, record = saved(config, killed)
    theirs, expected = saved(config, undisturbed)
    assert_identical(ours, theirs)
    assert record["best"] == expected["best"]
    assert record["versions"]["jax"] == jax.__version__
    assert timeless(lines(killed)) == timeless(lines(undisturbed))
    for split in ("train", "validation"):
        written = [(r["step"], r["loss"]) for r in lines(killed) if r["split"] == split]
        assert np.array(shown(killed, split)) == pytest.approx(np.array(written))
    # Nothing but whole checkpoints is left.
    names = [path.name for path in (killed / "checkpoints").iterdir()]
    assert all(name.isdigit() for name in names), names


def test_a_finished_run_says_so_and_changes_nothing(finished_run, tmp_path, capsys):
    workdir, summary = finished_run
    before = {path: path.read_bytes() for path in workdir.glob("*.json*")}
    again = train.train_and_evaluate(tiny_config(), workdir)
    assert again["test"] == summary["test"]
    assert "is finished at step 40 of 40" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in workdir.glob("*.json*")} == before


def test_a_finished_run_goes_on_with_more_steps(finished_run, tmp_path, capsys):
    workdir = shutil.copytree(finished_run[0], tmp_path / "run")
    summary = train.train_and_evaluate(tiny_config(num_steps=60), workdir)
    assert "no longer 40" in capsys.readouterr().err
    assert summary["step"] == 60
    assert [r["step"] for r in lines(workdir) if r["split"] == "validation"] == [
        20,
        40,
        60,
    ]


def test_a_cut_or_garbled_line_of_metrics_is_dropped(finished_run, tmp_path):
    workdir = shutil.copytree(finished_run[0], tmp_path / "run")
    path = workdir / "metrics.jsonl"
    whole = path.read_bytes().rstrip()
    for junk in (b"", b'\n{"step": 4', b"\n5\nnull\n[]\n\xff\xfe"):
        path.write_bytes(whole + junk)
        (workdir / "summary.json").write_text('{"step": 40}')
        train.train_and_evaluate(tiny_config(), workdir)
        assert path.read_bytes() == whole + b"\n"
        assert "test" in json.loads((workdir / "summary.json").read_text())


def test_eval_prints_the_table_of_the_best_or_of_a_step(finished_run, capsys):
    workdir, summary = finished_run
    best = train.evaluate_checkpoint(tiny_config(), workdir)
    assert best["test"] == summary["test"]
    assert best["evaluated_step"] == summary["evaluated_step"]
    assert f"{summary['test']['accuracy']:.2%}" in capsys.readouterr().out
    early = train.evaluate_checkpoint(tiny_config(), workdir, step=20)
    assert early["evaluated_step"] == 20
    assert early["test"] != best["test"]


def corrupt(workdir, step, how):
    files = sorted(
        (path for path in (workdir / "checkpoints" / str(step)).rglob("*")),
        key=lambda path: path.stat().st_size if path.is_file() else 0,
    )
    largest = files[-1]
    content = bytearray(largest.read_bytes())
    if how == "truncated":
        del content[len(content) // 2 :]
    elif how == "flipped":
        content[len(content) // 2] ^= 1
    elif how == "emptied":
        for path in files:
            if path.is_file():
                path.write_bytes(b"")
        return
    elif how == "missing":
        largest.unlink()
        return
    largest.write_bytes(content)


@pytest.mark.parametrize("how", ["truncated", "flipped", "emptied", "missing"])
def test_a_damaged_newest_checkpoint_is_passed_over(
    how, finished_run, tmp_path, capsys
):
    workdir, summary = finished_run
    workdir = shutil.copytree(workdir, tmp_path / "run")
    corrupt(workdir, 40, how)
    resumed = train.train_and_evaluate(tiny_config(), workdir)
    said = capsys.readouterr()
    assert "the checkpoint of step 40 in" in said.err
    assert "is damaged" in said.err
    assert "resumes at step 20" in said.out
    assert resumed["test"] == summary["test"]
    assert len(list((workdir / "damaged-checkpoints").iterdir())) == 1
    assert timeless(lines(workdir)) == timeless(lines(finished_run[0]))


@pytest.mark.parametrize("how", ["truncated", "emptied"])
def test_all_damaged_is_an_error_that_loses_nothing(how, finished_run, tmp_path):
    workdir = shutil.copytree(finished_run[0], tmp_path / "run")
    for step in (20, 40):
        corrupt(workdir, step, how)
    with pytest.raises(UserError, match="and so is every one before"):
        train.train_and_evaluate(tiny_config(), workdir)
    assert {path.name for path in (workdir / "checkpoints").iterdir()} >= {"20", "40"}
    for name in ("config.json", "metrics.jsonl", "summary.json"):
        assert (workdir / name).read_bytes() == (finished_run[0] / name).read_bytes()


def test_the_best_on_validation_is_kept_and_early_stopping(tmp_path, capsys):
    # A rate that ruins what was learnt: the first evaluations are the best.
    config = tiny_config(
        num_steps=400,
        eval_every=20,
        keep_checkpoints=1,
        patience=3,
        model={"name": "softmax"},
        optimizer={"learning_rate": 1e-2, "schedule": "exponential", "decay_rate": 3.0},
    )
    summary = train.train_and_evaluate(config, tmp_path)
    validation = {
        r["step"]: (r["accuracy"], -r["loss"])
        for r in lines(tmp_path)
        if r["split"] == "validation"
    }
    best = max(validation, key=validation.__getitem__)
    assert summary["evaluated_step"] == best
    assert summary["step"] == best + 3 * 20 < 400
    assert "stopped early" in capsys.readouterr().out
    checkpoints = Checkpoints(tmp_path / "checkpoints", read_only=True)
    assert checkpoints.steps == [best, summary["step"]]
    assert checkpoints.best_step == best
    assert train.train_and_evaluate(config, tmp_path)["step"] == summary["step"]


def test_a_loss_that_is_not_finite_stops_and_leaves_the_last_good(tmp_path):
    config = tiny_config(
        num_steps=200,
        eval_every=100,
        checkpoint_every=1,
        optimizer={"name": "sgd", "schedule": "exponential", "decay_rate": 1e9},
    )
    with pytest.raises(UserError, match="not finite") as raised:
        train.train_and_evaluate(config, tmp_path)
    checkpoints = Checkpoints(tmp_path / "checkpoints", read_only=True)
    last = checkpoints.steps[-1]
    assert f"the last good checkpoint is of step {last}" in str(raised.value)
    tree, _ = saved(config, tmp_path, last)
    assert all(
        np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree["state"].params)
    )


def test_devices_and_placements_train_alike(tmp_path):
    losses = []
    for placement, devices in (("device", 1), ("host", 1), ("device", 4), ("host", 8)):
        config = tiny_config(
            batch_size=80,
            data={"source": "synthetic", "placement": placement},
            mesh={"data": devices},
        )
        summary = train.train_and_evaluate(config, tmp_path / f"{placement}{devices}")
        assert summary["devices"]["count"] == devices
        losses.append(summary["validation"]["loss"])
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-2)


def test_other_data_under_the_same_run_is_refused(finished_run, tmp_path):
    workdir = shutil.copytree(finished_run[0], tmp_path / "run")
    config = tiny_config(data={"source": "bundled"}, num_steps=60)
    with pytest.raises(UserError, match=r"trained on synthetic .*now mnist \(bundled"):
        train.train_and_evaluate(config, workdir)
    for name in ("config.json", "metrics.jsonl", "summary.json"):
        assert (workdir / name).read_bytes() == (finished_run[0] / name).read_bytes()


# On all of MNIST.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "least"), [("softmax", 0.920), ("mlp", 0.980), ("cnn", 0.992)]
)
def test_recipes_reach_their_accuracy(name, least, mnist_dir, tmp_path):
    accuracies = []
    for seed in range(3):
        workdir = tmp_path / str(seed)
        flags = [f"--config={name}", f"--config.seed={seed}", f"--workdir={workdir}"]
        flags += [f"--config.data.dir={mnist_dir}", "--config.mesh.data=1"]
        assert main.main(flags) == 0
        summary = json.loads((workdir / "summary.json").read_text())
        assert summary["test"]["count"] == 10_000
        accuracies.append(summary["test"]["accuracy"])
    assert np.mean(accuracies) >= least, accuracies
