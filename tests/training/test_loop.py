"""Whole runs: what they leave, and that nothing of it is lost."""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore
from helpers import (
    assert_identical,
    lines,
    saved,
    shown,
    stop_at,
    timeless,
    tiny_config,
)

from flaxmnist import config as configs
from flaxmnist import data
from flaxmnist.__main__ import main
from flaxmnist.cli import exits, predict, train
from flaxmnist.core import models
from flaxmnist.core.steps import predict_step, train_step
from flaxmnist.data import idx
from flaxmnist.errors import DivergedError, StoppedError, UserError
from flaxmnist.inference.saved_run import open_run
from flaxmnist.report import html
from flaxmnist.rundir import new_folder
from flaxmnist.rundir.checkpoints import Checkpoints
from flaxmnist.runtime import machine, processes
from flaxmnist.runtime.console import Console
from flaxmnist.runtime.interrupts import record_interrupts
from flaxmnist.training import finish, loop, resume
from flaxmnist.training.experiment import Experiment


def test_what_a_run_leaves(finished_run):
    workdir, summary = finished_run
    assert summary.test.accuracy > 0.8
    on_disk = json.loads((workdir / "summary.json").read_text())
    assert on_disk["test"] == dataclasses.asdict(summary.test)
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


def test_tensorboard_shows_the_same_figures(finished_run):
    workdir, _ = finished_run
    for split, name in (("train", "images_per_second"), ("validation", "accuracy")):
        written = [(r["step"], r[name]) for r in lines(workdir) if r["split"] == split]
        assert np.array(shown(workdir, split, name)) == pytest.approx(np.array(written))


def test_tensorboard_shows_the_options(finished_run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata

    events = EventAccumulator(str(finished_run[0] / "tensorboard")).Reload()
    name = metadata.SESSION_START_INFO_TAG
    content = events.SummaryMetadata(name).plugin_data.content
    found = metadata.parse_session_start_info_plugin_data(content).hparams
    assert found["optimizer.learning_rate"].number_value == 1e-2
    assert found["model.features"].string_value == "(2, 4)"
    (text,) = events.Tensors("config")
    lines = text.tensor_proto.string_val[0].decode().splitlines()
    assert "    batch_size: 100" in lines


@pytest.mark.slow
def test_tensorboard_shows_what_summaries_and_log_tensors_ask_for(tmp_path, capsys):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    summaries = ("norms", "histograms", "filters", "mistakes")
    config = tiny_config(
        # Makes mistakes until the end.
        optimizer={"learning_rate": 3e-3},
        summaries=summaries,
        log_tensors=("probabilities", "classes"),
        every_n_steps=15,
        eval_splits=("train", "validation", "test"),
    )
    loop.train_and_evaluate(config, tmp_path)
    said = capsys.readouterr().out

    def events(split):
        return EventAccumulator(
            str(tmp_path / "tensorboard" / split), size_guidance={"images": 0}
        ).Reload()

    def texts(name):
        found = events("validation").Tensors(name)
        return {e.step: e.tensor_proto.string_val[0].decode() for e in found}

    training = events("train")
    assert {
        "loss",
        "accuracy",
        "learning_rate",
        "images_per_second",
        "gradient_norm",
        "parameter_norm",
    } == {name for name in training.Tags()["scalars"] if name != "epoch"}
    assert [e.step for e in training.Scalars("gradient_norm")] == [10, 20, 30, 40]

    # Parameters, once an evaluation, as the checkpoint of that step has them.
    tree, _ = saved(config, tmp_path)
    kernel = tree["state"].params["Dense_0"]["kernel"]
    *_, last = training.Histograms("Dense_0/kernel")
    assert last.step == 40
    assert last.histogram_value.num == kernel.size
    assert last.histogram_value.max == pytest.approx(float(kernel.max()))
    assert sum(last.histogram_value.bucket) == kernel.size
    assert len(training.Tags()["histograms"]) == len(
        jax.tree.leaves(tree["state"].params)
    )
    (filters,) = {(e.width, e.height) for e in training.Images("filters")}
    assert filters == (8 * 6, 6)  # Two kernels of 5×5, in a row of eight.

    # Every mistake of validation, the surest first.
    model = Experiment.build(config).model
    images = Experiment.build(config).dataset.validation.images
    labels = Experiment.build(config).dataset.validation.labels
    logits = model.apply({"params": tree["state"].params}, images)
    wrong = (np.argmax(logits, axis=-1) != labels).sum()
    told = texts("mistakes/captions")[40].splitlines()
    assert len([line for line in told if "taken for" in line]) == min(wrong, 64)
    sureness = [float(line.split("(")[1][:-2]) for line in told if line]
    assert sureness == sorted(sureness, reverse=True)
    assert [e.step for e in events("validation").Images("mistakes")] == [20, 40]

    # The hook: the same four images, at its own interval and at the end.
    shown_at = texts("probabilities")
    assert list(shown_at) == [15, 30, 40]
    probabilities = np.array(jax.nn.softmax(logits[:4]))
    for index in range(4):
        row = " ".join(f"{value:.4g}" for value in probabilities[index])
        assert f"probabilities[{index}]  label {labels[index]}  " in said
        printed = shown_at[40].split("\n\n")[index].split("  ")[-1].split()
        assert np.array(printed, float) == pytest.approx(
            np.array(row.split(), float), rel=1e-2, abs=1e-4
        )
    assert "classes[3]" in said

    # The splits beside validation.
    by_split = {r["split"]: r for r in lines(tmp_path) if r["step"] == 40}
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["evaluated_step"] == 40
    for split, name in (("train", "train_eval"), ("test", "test")):
        assert by_split[name]["accuracy"] == summary[split]["accuracy"]
        assert events(name).Scalars("loss")[-1].step == 40


KILLED = """
import os, signal, sys
from flaxmnist.cli import exits, train
from flaxmnist.rundir import metrics_log

write = metrics_log.MetricsWriter.write
def write_and_die(self, record):
    write(self, record)
    if (record.step, record.split) == (170, "validation"):
        os.kill(os.getpid(), signal.SIGKILL)
metrics_log.MetricsWriter.write = write_and_die
train.main(sys.argv[1:])
"""
# 40 steps an epoch: step 170 is in the middle of the fifth, and what is written of it
# has no checkpoint yet. Logs, evaluations and checkpoints fall on different steps.
FLAGS = [
    "--config.num_steps=300",
    "--config.batch_size=50",
    "--config.log_every=34",
    "--config.eval_every=85",
    "--config.checkpoint_every=25",
    "--config.report=False",
    "--num_cpu_devices=1",
]


def run_command(flags, *, script=None):
    start = ["-c", script] if script else ["-m", "flaxmnist.main"]
    return subprocess.run(
        [sys.executable, *start, *flags], capture_output=True, text=True, timeout=240
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "placement"),
    [("cnn", "device"), ("mlp", "host")],
)
def test_killed_and_resumed_is_bit_identical(network, placement, synthetic, tmp_path):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    flags = [f"--config={network}:smoke", *FLAGS]
    flags.append(f"--config.data.placement={placement}")
    if network == "mlp":
        flags.append("--config.model.hidden=(32,)")
    if placement == "host":  # From disk, of which the first twelfth is for validation.
        for stem, splits in (("train", ("test", "train")), ("t10k", ("test",))):
            held_out = [synthetic.split(split) for split in splits]
            images = np.concatenate([split.images for split in held_out])
            labels = np.concatenate([split.labels for split in held_out])
            first = max(0, len(labels) - 2_181)
            idx.write(tmp_path / f"{stem}-images-idx3-ubyte", [images[first:]])
            idx.write(tmp_path / f"{stem}-labels-idx1-ubyte", [labels[first:]])
        flags += ["--config.data.source=idx", f"--config.data.dir={tmp_path}"]
    done = run_command([*flags, f"--workdir={undisturbed}"])
    assert done.returncode == 0, done.stderr
    flags.append(f"--workdir={killed}")
    assert run_command(flags, script=KILLED).returncode == -signal.SIGKILL
    resumed = run_command(flags)
    assert resumed.returncode == 0, resumed.stderr
    assert "resumes at step 1" in resumed.stdout
    config = configs.from_json((undisturbed / "config.json").read_text())
    config = configs.override(config, [("mesh.data", "1")])
    ours, record = saved(config, killed)
    theirs, expected = saved(config, undisturbed)
    assert_identical(ours, theirs)
    assert record.best == expected.best
    assert record.versions["jax"] == jax.__version__
    assert timeless(lines(killed)) == timeless(lines(undisturbed))
    for split in ("train", "validation"):
        written = [(r["step"], r["loss"]) for r in lines(killed) if r["split"] == split]
        assert np.array(shown(killed, split)) == pytest.approx(np.array(written))
    # Nothing but whole checkpoints is left.
    names = [path.name for path in (killed / "checkpoints").iterdir()]
    assert all(name.isdigit() for name in names), names


# The last record is that of the last evaluation: nothing is left to train.
@pytest.mark.parametrize(
    ("number", "when"),
    [
        (signal.SIGINT, (10, "train")),
        (signal.SIGTERM, (10, "train")),
        (signal.SIGTERM, (40, "validation")),
    ],
)
def test_a_signal_stops_a_run_which_is_saved_and_resumes_to_the_bit(
    number, when, finished_run, tmp_path, monkeypatch
):
    config = tiny_config()
    with monkeypatch.context() as patch:
        stop_at(when, patch, number)
        with pytest.raises(StoppedError, match="of 40, which is saved") as stopped:
            loop.train_and_evaluate(config, tmp_path)
    assert stopped.value.number == number
    assert exits.exit_code(lambda argv: (_ for _ in ()).throw(stopped.value), []) == (
        128 + number
    )
    assert not (tmp_path / "summary.json").exists()
    loop.train_and_evaluate(config, tmp_path)
    assert_identical(saved(config, tmp_path)[0], saved(config, finished_run[0])[0])
    assert timeless(lines(tmp_path)) == timeless(lines(finished_run[0]))


def test_a_second_signal_ends_at_once_and_a_late_one_is_not_lost():
    def interrupted(times):
        with record_interrupts() as interrupt:
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)
                seen.append(interrupt.number)

    for times in (1, 2):
        seen = []
        with pytest.raises(KeyboardInterrupt):
            interrupted(times)
        assert seen == [signal.SIGINT]


def test_a_finished_run_says_so_and_changes_nothing(finished_run, tmp_path, capsys):
    workdir, summary = finished_run
    before = {path: path.read_bytes() for path in workdir.glob("*.json*")}
    for num_steps, place in (
        (40, "40 of 40"),
        (10, "40, beyond the configured 10 steps"),
    ):
        config = tiny_config(num_steps=num_steps)
        again = loop.train_and_evaluate(config, workdir)
        assert again.test == summary.test
        assert f"is finished at step {place}\n" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in workdir.glob("*.json*")} == before


def test_a_finished_run_goes_on_with_more_steps(finished_run, tmp_path, capsys):
    workdir = shutil.copytree(finished_run[0], tmp_path / "run")
    summary = loop.train_and_evaluate(tiny_config(num_steps=60), workdir)
    assert capsys.readouterr().err == ""
    assert summary.step == 60
    assert [r["step"] for r in lines(workdir) if r["split"] == "validation"] == [
        20,
        40,
        60,
    ]


def test_another_machine_or_version_is_warned_of(
    finished_run, tmp_path, capsys, monkeypatch
):
    workdir = shutil.copytree(finished_run[0], tmp_path / "run")

    def warning(num_steps=60):
        run = Experiment.build(tiny_config(num_steps=num_steps))
        with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
            resume.resume(run, checkpoints, Console())
        return " ".join(capsys.readouterr().err.split())

    assert warning() == ""
    cores = machine.cpu_threads()
    monkeypatch.setenv("PJRT_NPROC", str(cores + 1))
    said = warning()
    assert f"of step 40 was saved with {cores} CPU core" in said
    assert f"this process has {cores + 1} CPU cores: results agree within" in said
    assert f"PJRT_NPROC={cores} for equal bits" in said
    assert warning(num_steps=40) == ""  # Nothing is left to train.
    monkeypatch.setattr(machine, "cpu_kind", lambda: ("Abacus 1", "0000beef"))
    monkeypatch.setattr(machine, "versions", lambda packages: {"jax": "0.0.1"})
    said = warning()
    assert f"was saved with jax {jax.__version__}, " in said
    assert "this process has jax 0.0.1, Abacus 1 (instruction sets 0000beef), " in said
    assert "PJRT_NPROC" not in said
    # Records of earlier versions said nothing of the machine.
    assert machine.changes({}, {}) is None
    assert machine.changes({"jax": "0.0.1"}, {}) is None


@pytest.mark.slow
def test_more_steps_of_a_schedule_that_ends_are_warned_of(tmp_path, capsys):
    options = {"model": {"name": "softmax"}, "optimizer": {"schedule": "cosine"}}
    loop.train_and_evaluate(tiny_config(**options), tmp_path)
    loop.train_and_evaluate(tiny_config(**options, num_steps=60), tmp_path)
    said = capsys.readouterr().err
    assert "60 steps long, no longer 40: its cosine schedule is stretched" in said


@pytest.mark.slow
def test_what_is_taken_back_is_taken_back_of_every_split(finished_run, tmp_path):
    workdir = tmp_path / "run"
    splits = ("validation", "test")
    loop.train_and_evaluate(tiny_config(num_steps=60, eval_splits=splits), workdir)
    shutil.rmtree(workdir / "checkpoints" / "60")
    loop.train_and_evaluate(tiny_config(num_steps=60), workdir)
    assert [step for step, _ in shown(workdir, "test")] == [20, 40]
    assert [step for step, _ in shown(workdir, "validation")] == [20, 40, 60]


def test_a_finished_run_keeps_the_configuration_it_was_trained_with(
    finished_run, tmp_path
):
    workdir = shutil.copytree(finished_run[0], tmp_path / "run")
    loop.train_and_evaluate(tiny_config(num_steps=10), workdir)
    config = configs.from_json((workdir / "config.json").read_text())
    assert config.num_steps == 40


def test_a_cut_or_garbled_line_of_metrics_is_dropped(finished_run, tmp_path):
    workdir = shutil.copytree(finished_run[0], tmp_path / "run")
    path = workdir / "metrics.jsonl"
    whole = path.read_bytes().rstrip()
    for junk in (b"", b'\n{"step": 4', b"\n5\nnull\n[]\n\xff\xfe"):
        path.write_bytes(whole + junk)
        (workdir / "summary.json").write_text('{"step": 40}')
        loop.train_and_evaluate(tiny_config(), workdir)
        assert path.read_bytes() == whole + b"\n"
        assert "test" in json.loads((workdir / "summary.json").read_text())


def test_eval_prints_the_table_of_the_best_or_of_a_step(finished_run, capsys):
    workdir, summary = finished_run
    best = open_run(workdir, config=tiny_config(), use_mesh=True).summarize()
    assert best.test == summary.test
    assert best.evaluated_step == summary.evaluated_step
    assert f"{summary.test.accuracy:.2%}" in capsys.readouterr().out
    early = open_run(workdir, step=20, config=tiny_config(), use_mesh=True).summarize()
    assert early.evaluated_step == 20
    assert early.test != best.test


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_predict_writes_every_example_of_a_split_in_order(
    split, finished_run, tmp_path, capsys
):
    workdir = shutil.copytree(finished_run[0], tmp_path / "run")
    flags = [f"--workdir={workdir}", f"--split={split}"]
    # Without a split, the older way to name the command predicts the test split.
    older = ["--mode=predict", *flags[:1]]
    assert (main(older) if split == "test" else predict.main(flags)) == 0
    accuracy = getattr(finished_run[1], split).accuracy
    assert f"accuracy {accuracy:.2%}" in capsys.readouterr().out
    path = workdir / f"predictions-{split}.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    examples = Experiment.build(tiny_config()).dataset.split(split)
    assert [record["index"] for record in records] == list(range(len(examples)))
    assert [record["label"] for record in records] == examples.labels.tolist()
    probabilities = np.array([record["probabilities"] for record in records])
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    classes = [record["classes"] for record in records]
    assert classes == probabilities.argmax(axis=1).tolist()
    assert np.mean(classes == examples.labels) == accuracy
    # Dropout is of training alone: the model's own answer, and the same again.
    tree, _ = saved(tiny_config(), workdir, finished_run[1].evaluated_step)
    logits = Experiment.build(tiny_config()).model.apply(
        {"params": tree["state"].params}, examples.images[:50]
    )
    calibrated = jax.nn.softmax(logits / finished_run[1].temperature)
    np.testing.assert_allclose(calibrated, probabilities[:50], atol=1e-5)
    before = path.read_bytes()
    path.unlink()
    assert predict.main(flags) == 0
    assert path.read_bytes() == before
    path.unlink()
    path.mkdir()
    assert predict.main(flags) == 2
    assert f"{path} is not a regular file" in capsys.readouterr().err
    assert [found.name for found in workdir.glob("*partial*")] == []


def test_a_run_begins_with_the_parameters_of_another(tmp_path):
    model = {"name": "mlp", "hidden": (8,), "batch_norm": True}
    summary = loop.train_and_evaluate(tiny_config(model=model), tmp_path / "source")
    source = str(tmp_path / "source")
    changes = {"init_from": source, "seed": 5, "optimizer": {"name": "sgd"}}
    config = tiny_config(model=model, **changes)
    begun = resume.begin(Experiment.build(config))
    tree, _ = saved(
        tiny_config(model=model), tmp_path / "source", summary.evaluated_step
    )
    for part in ("params", "model_state"):
        kept = getattr(tree["state"], part)
        assert jax.tree.leaves(kept)
        assert_identical(
            jax.device_get(getattr(begun.state, part)), jax.device_get(kept)
        )
    assert (begun.step, int(begun.state.step)) == (0, 0)
    warm = loop.train_and_evaluate(config, tmp_path / "warm")
    first, cold = lines(tmp_path / "warm")[0], lines(tmp_path / "source")[0]
    assert first["accuracy"] > cold["accuracy"] + 0.3
    assert warm.config["init_from"] == source
    # It resumes from its own checkpoints, even where the other run is no more.
    shutil.rmtree(source)
    longer = tiny_config(model=model, **changes, num_steps=60)
    assert loop.train_and_evaluate(longer, tmp_path / "warm").step == 60


def test_process_0_chooses_the_checkpoint_to_begin_with(finished_run, monkeypatch):
    monkeypatch.setattr(processes, "broadcast", lambda step: 20)
    begun = resume.begin(Experiment.build(tiny_config(init_from=str(finished_run[0]))))
    tree, _ = saved(tiny_config(), finished_run[0], 20)
    assert_identical(jax.device_get(begun.state.params), tree["state"].params)


def test_an_optimizer_begins_with_the_parameters_of_another_run_too(finished_run):
    config = tiny_config(
        init_from=str(finished_run[0]),
        seed=5,
        optimizer={"name": "schedule_free_sgd", "schedule": "constant"},
    )
    state = resume.begin(Experiment.build(config)).state
    assert_identical(jax.device_get(state.opt_state.z), jax.device_get(state.params))
    batch = {"image": np.zeros((4, 28, 28, 1), np.uint8), "label": np.arange(4)}
    train_step(state, batch)  # Each array is donated once.


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (
            {"name": "cnn", "features": (2, 4), "hidden": (17,)},
            r"bias is float32 \[16\] in the checkpoint, float32 \[17\] in the model",
        ),
        (
            {"name": "cnn", "features": (2, 4), "hidden": ()},
            r"bias is float32 \[16\] in the checkpoint, float32 \[10\] in the model",
        ),
        (
            {"name": "softmax"},
            r"Conv_0/bias is float32 \[2\] in the checkpoint, missing in the model",
        ),
        (
            {"name": "cnn", "features": (2, 4), "hidden": (16,), "batch_norm": True},
            r"_0/mean is missing in the checkpoint, float32 \[2\] in the model",
        ),
    ],
)
def test_parameters_of_another_model_are_refused(model, said, finished_run, tmp_path):
    config = tiny_config(init_from=str(finished_run[0]), model=model)
    with pytest.raises(UserError, match=said):
        loop.train_and_evaluate(config, tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def largest_array(checkpoint):
    """Returns the file that stores the bytes of the largest array, and their middle.

    Nothing refers to some parts of the files, such as earlier versions of the index:
    a byte that is flipped there does no harm, and no check notices it.
    """
    arrays = checkpoint / "arrays"
    store = tensorstore.KvStore.open(
        {"driver": "ocdbt", "base": f"file://{arrays}/"}
    ).result()
    values = [store.read(key).result().value for key in store.list().result()]
    value = max(values, key=len)
    for path in arrays.rglob("d/*"):
        if (start := path.read_bytes().find(value)) >= 0:
            return path, start + len(value) // 2
    raise AssertionError("no file has the value")


def corrupt(workdir, step, how):
    checkpoint = workdir / "checkpoints" / str(step)
    if how == "emptied":
        for path in checkpoint.rglob("*"):
            if path.is_file():
                path.write_bytes(b"")
        return
    path, place = largest_array(checkpoint)
    content = bytearray(path.read_bytes())
    if how == "truncated":
        path.write_bytes(content[:place])
    elif how == "flipped":
        content[place] ^= 1
        path.write_bytes(content)
    else:
        path.unlink()


@pytest.mark.parametrize("how", ["truncated", "flipped", "emptied", "missing"])
def test_a_damaged_newest_checkpoint_is_passed_over(
    how, finished_run, tmp_path, capsys
):
    workdir, summary = finished_run
    workdir = shutil.copytree(workdir, tmp_path / "run")
    corrupt(workdir, 40, how)
    resumed = loop.train_and_evaluate(tiny_config(), workdir)
    said = capsys.readouterr()
    assert "the checkpoint of step 40 in" in said.err
    assert "is damaged" in said.err
    assert "resumes at step 20" in said.out
    assert resumed.test == summary.test
    assert len(list((workdir / "damaged-checkpoints").iterdir())) == 1
    assert timeless(lines(workdir)) == timeless(lines(finished_run[0]))


@pytest.mark.parametrize("how", ["truncated", "emptied"])
def test_all_damaged_is_an_error_that_loses_nothing(how, finished_run, tmp_path):
    workdir = shutil.copytree(finished_run[0], tmp_path / "run")
    for step in (20, 40):
        corrupt(workdir, step, how)
    with pytest.raises(UserError, match="and so are all earlier ones"):
        loop.train_and_evaluate(tiny_config(), workdir)
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
    summary = loop.train_and_evaluate(config, tmp_path)
    validation = {
        r["step"]: (r["accuracy"], -r["loss"])
        for r in lines(tmp_path)
        if r["split"] == "validation"
    }
    best = max(validation, key=validation.__getitem__)
    assert summary.evaluated_step == best
    assert summary.step == best + 3 * 20 < 400
    assert "stopped early" in capsys.readouterr().out
    checkpoints = Checkpoints(tmp_path / "checkpoints", read_only=True)
    assert checkpoints.steps == [best, summary.step]
    assert checkpoints.best_step == best
    assert loop.train_and_evaluate(config, tmp_path).step == summary.step


def test_a_loss_that_is_not_finite_stops_and_leaves_the_last_good(tmp_path):
    config = tiny_config(
        num_steps=200,
        eval_every=100,
        checkpoint_every=10,
        optimizer={"name": "sgd", "schedule": "exponential", "decay_rate": 1e9},
    )
    with pytest.raises(UserError, match="not finite") as raised:
        loop.train_and_evaluate(config, tmp_path)
    checkpoints = Checkpoints(tmp_path / "checkpoints", read_only=True)
    last = checkpoints.steps[-1]
    assert f"the last good checkpoint is of step {last}" in str(raised.value)
    tree, _ = saved(config, tmp_path, last)
    assert all(
        np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree["state"].params)
    )


class InfiniteInEvaluation(nn.Module):
    @nn.compact
    def __call__(self, images, *, train):
        logits = nn.Dense(10)(models.scale(images).reshape(len(images), -1))
        return logits if train else jnp.where(jnp.arange(10) == 3, -jnp.inf, logits)


@pytest.mark.parametrize(
    ("options", "tried", "rollbacks"),
    [
        ({}, "", 0),
        ({"on_nan": "rollback", "max_rollbacks": 2}, ", after 2 of 2 rollbacks", 2),
    ],
)
def test_an_evaluation_whose_loss_is_not_finite_stops_with_its_split(
    options, tried, rollbacks, tmp_path, capsys
):
    config = tiny_config(
        model={"name": InfiniteInEvaluation}, checkpoint_every=5, **options
    )
    said = f"on validation is not finite at step 20{tried}; the last good .* of step 15"
    with pytest.raises(UserError, match=said):
        loop.train_and_evaluate(config, tmp_path)
    assert capsys.readouterr().err.count("back to step 15, with") == rollbacks
    assert {line["split"] for line in lines(tmp_path)} == {"train"}


class InfiniteForWhite(nn.Module):
    @nn.compact
    def __call__(self, images, *, train):
        pixels = models.scale(images).reshape(len(images), -1)
        is_white = jnp.all(pixels == 1, axis=1, keepdims=True)
        return jnp.where(is_white, -jnp.inf, nn.Dense(10)(pixels))


def test_a_final_loss_that_is_not_finite_is_an_error_with_its_split(
    synthetic, tmp_path
):
    images = synthetic.test.images.copy()
    images[0] = 255
    test = data.Split(images, synthetic.test.labels)
    given = dataclasses.replace(synthetic, test=test)
    config = tiny_config(model={"name": InfiniteForWhite}, num_steps=20)
    for _ in range(2):
        with pytest.raises(DivergedError, match="on test is not finite at step 20, wh"):
            loop.train_and_evaluate(config, tmp_path, data=given)
        assert not (tmp_path / "summary.json").exists()


def test_a_signal_stops_a_run_whose_loss_is_not_finite(tmp_path, monkeypatch):
    config = tiny_config(
        model={"name": InfiniteInEvaluation}, checkpoint_every=5, on_nan="rollback"
    )
    with monkeypatch.context() as patch:
        stop_at((20, "train"), patch, signal.SIGTERM)
        said = f"validation is not finite at step 20; --workdir {tmp_path}/a resumes "
        with pytest.raises(StoppedError, match=f"{said}from step 15, which") as stopped:
            loop.train_and_evaluate(config, tmp_path / "a")
    assert stopped.value.number == signal.SIGTERM
    # Between the first dispatch and its check.
    monkeypatch.setattr(
        loop, "_is_finite", lambda *_: os.kill(os.getpid(), signal.SIGINT)
    )
    with pytest.raises(StoppedError, match=r"between .*/b starts again at step 0"):
        loop.train_and_evaluate(config, tmp_path / "b")


def test_a_loss_that_is_not_finite_rolls_back_and_resumes_to_the_bit(
    tmp_path, monkeypatch, capsys
):
    def config(most):
        return tiny_config(
            log_every=5,
            checkpoint_every=5,
            summaries=(),
            ema=0.9,
            grad_accumulation=2,
            model={"name": "softmax"},
            # At its peak, float32 cannot hold the losses.
            optimizer={"name": "sgd", "learning_rate": 6e34, "schedule": "one_cycle"},
            on_nan="rollback",
            max_rollbacks=most,
        )

    def backs():
        found = (
            r"back to step (\d+), with optimizer.learning_rate=(\S+) \(rollback (\d)"
        )
        return re.findall(found, capsys.readouterr().err)

    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    loop.train_and_evaluate(config(4), undisturbed)
    told = backs()
    assert [int(number) for *_, number in told] == [1, 2]
    assert [float(rate) for _, rate, _ in told] == [3e34, 1.5e34]
    assert all(0 < int(step) < 40 for step, *_ in told)
    tree, record = saved(config(4), undisturbed)
    assert record.rollbacks == 2
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree["state"].ema))
    steps = [r["step"] for r in lines(undisturbed) if r["split"] == "train"]
    assert steps == [5, 10, 15, 20, 25, 30, 35, 40]
    assert [step for step, _ in shown(undisturbed, "train")] == steps
    rates = {r["step"]: r.get("learning_rate") for r in lines(undisturbed)}
    schedule = Experiment.build(config(4)).schedule
    assert rates[15] == pytest.approx(float(schedule(14)) / 4)

    with pytest.raises(UserError, match=r"after 1 of 1 rollbacks; the last good") as no:
        loop.train_and_evaluate(config(1), disturbed)
    assert f"step {told[1][0]}, in" in str(no.value)
    assert "learning_rate than 3e+34" in str(no.value)
    with monkeypatch.context() as patch:
        stop_at((30, "train"), patch)
        with pytest.raises(StoppedError):
            loop.train_and_evaluate(config(4), disturbed)
    loop.train_and_evaluate(config(4), disturbed)
    again, record = saved(config(4), disturbed)
    assert record.rollbacks == 2
    assert_identical(again, tree)
    assert timeless(lines(disturbed)) == timeless(lines(undisturbed))


@pytest.mark.slow
def test_the_average_is_evaluated_predicted_and_taken_away(tmp_path):
    options = {"num_steps": 20, "ema": 0.95, "precision": "bfloat16"}
    options["model"] = {"name": "mlp", "hidden": (8,), "batch_norm": True}
    summary = loop.train_and_evaluate(tiny_config(**options), tmp_path / "run")
    state = saved(tiny_config(**options), tmp_path / "run")[0]["state"]
    assert not np.array_equal(
        state.ema["Dense_0"]["bias"], state.params["Dense_0"]["bias"]
    )
    loaded = open_run(tmp_path / "run").state
    for found in (loaded.eval_params, state.eval_params):
        assert_identical(jax.device_get(found), state.ema)
    split = Experiment.build(tiny_config(**options)).dataset.validation
    outputs = jax.device_get(predict_step(loaded, split.images))
    accuracy = np.mean(outputs["classes"] == split.labels)
    assert summary.validation.accuracy == lines(tmp_path / "run")[-1]["accuracy"]
    assert summary.validation.accuracy == accuracy
    assert loaded.model.dtype == "bfloat16"
    # In float32, and of the average; else the parity check would refuse it.
    folder = open_run(tmp_path / "run").export("numpy")
    weights = np.load(folder / "weights.npz")
    np.testing.assert_array_equal(
        weights["Dense_0.kernel"], state.ema["Dense_0"]["kernel"]
    )
    begun = resume.begin(
        Experiment.build(
            tiny_config(model=options["model"], ema=0.5, init_from=f"{tmp_path}/run")
        )
    ).state
    assert_identical(jax.device_get(begun.params), state.ema)
    assert_identical(jax.device_get(begun.eval_params), state.ema)


@pytest.mark.slow
def test_devices_and_placements_train_alike(tmp_path):
    losses = []
    for placement, devices in (("device", 1), ("host", 8)):
        config = tiny_config(
            batch_size=80,
            data={"source": "synthetic", "placement": placement},
            mesh={"data": devices},
        )
        summary = loop.train_and_evaluate(config, tmp_path / f"{placement}{devices}")
        assert summary.devices.count == devices
        losses.append(summary.validation.loss)
    assert losses == pytest.approx([losses[0]] * 2, rel=1e-2)


def test_other_data_under_the_same_run_is_refused(finished_run, tmp_path):
    workdir = shutil.copytree(finished_run[0], tmp_path / "run")
    config = tiny_config(data={"source": "bundled"}, num_steps=60)
    with pytest.raises(UserError, match=r"trained on synthetic .*now mnist \(bundled"):
        loop.train_and_evaluate(config, workdir)
    for name in ("config.json", "metrics.jsonl", "summary.json"):
        assert (workdir / name).read_bytes() == (finished_run[0] / name).read_bytes()


@pytest.mark.parametrize("split", ["validation", "test"])
def test_other_data_to_evaluate_by_is_refused(
    split, finished_run, tmp_path, monkeypatch
):
    workdir, load = shutil.copytree(finished_run[0], tmp_path / "run"), data.load

    def other(*args, **options):
        dataset = load(*args, **options)
        found = dataset.split(split)
        changed = data.Split(found.images, (found.labels + 1) % 10)
        return dataclasses.replace(dataset, **{split: changed})

    monkeypatch.setattr(data, "load", other)
    said = f"with other examples in {split}; give"
    with pytest.raises(UserError, match=said):
        open_run(workdir, config=tiny_config(), use_mesh=True).summarize()
    with pytest.raises(UserError, match=said):
        loop.train_and_evaluate(tiny_config(num_steps=60), workdir)
    for name in ("config.json", "metrics.jsonl", "summary.json"):
        assert (workdir / name).read_bytes() == (finished_run[0] / name).read_bytes()
    # Several processes compare the same.
    texts = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(processes, "find_difference", lambda facts: texts.append(facts))
    Experiment.build(config := tiny_config(mesh={"data": 8}, batch_size=80))
    monkeypatch.setattr(data, "load", load)
    Experiment.build(config)
    assert texts[0] != texts[1]


# The end of a run.


def unfinished(finished_run, tmp_path):
    """A run that was trained, but neither evaluated nor reported."""
    workdir = shutil.copytree(finished_run[0], tmp_path / "run")
    (workdir / "summary.json").unlink()
    return workdir


def test_a_report_that_fails_costs_the_report_alone(
    finished_run, tmp_path, monkeypatch, capsys, caplog
):
    workdir, config = unfinished(finished_run, tmp_path), tiny_config(report=True)
    (workdir / "report.html").write_text("of an earlier summary")

    def fail(results, workdir):
        raise KeyError("Dense_0")

    def write(results, workdir):
        summary = results.summary
        steps = f"{summary.evaluated_step} {summary.step}"
        (workdir / "report.html").write_text(steps)

    monkeypatch.setattr(html, "write_report", fail)
    summary = loop.train_and_evaluate(config, workdir)
    assert summary.test == finished_run[1].test
    said = capsys.readouterr().err
    assert "the report was not written (KeyError: 'Dense_0')" in said
    assert f"python -m flaxmnist.report --workdir {workdir}" in said
    assert caplog.records[-1].exc_info[0] is KeyError
    before = (workdir / "summary.json").read_bytes()
    assert json.loads(before)["test"] == dataclasses.asdict(summary.test)
    assert not (workdir / "report.html").exists()
    # The same command writes it, and once only.
    for writer in (write, fail):
        monkeypatch.setattr(html, "write_report", writer)
        loop.train_and_evaluate(config, workdir)
        text = (workdir / "report.html").read_text()
        assert text == f"{summary.evaluated_step} 40"
    assert capsys.readouterr().err == ""
    assert (workdir / "summary.json").read_bytes() == before
    # A report never disagrees with the summary, even if reports are turned off.
    (workdir / "summary.json").unlink()
    loop.train_and_evaluate(tiny_config(report=False), workdir)
    assert not (workdir / "report.html").exists()


@pytest.mark.parametrize("name", ["summarize", "_report"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_after_training_says_how_to_finish(
    number, name, finished_run, tmp_path, monkeypatch
):
    workdir, config = unfinished(finished_run, tmp_path), tiny_config(report=True)
    called = getattr(finish, name)

    def interrupted(*args, **options):
        os.kill(os.getpid(), number)
        return called(*args, **options)

    monkeypatch.setattr(html, "write_report", lambda *args: None)
    with monkeypatch.context() as patch:
        patch.setattr(finish, name, interrupted)
        with pytest.raises(StoppedError, match="training is complete") as stopped:
            loop.train_and_evaluate(config, workdir)
    assert stopped.value.number == number
    assert f"the same command with --workdir {workdir} evaluates it" in (
        str(stopped.value)
    )
    assert loop.train_and_evaluate(config, workdir).test == finished_run[1].test


def test_runs_without_a_name_of_their_own_get_one_each(tmp_path):
    with contextlib.ExitStack() as stack:
        used, *others = (
            stack.enter_context(new_folder.created(tmp_path / "runs", "cnn"))
            for _ in range(3)
        )
        assert [path.name for path in (used, *others)] == ["cnn", "cnn-2", "cnn-3"]
        (used / "config.json").touch()
    assert list((tmp_path / "runs").iterdir()) == [used]
    with pytest.raises(ZeroDivisionError), new_folder.created(tmp_path / "new", "cnn"):
        raise ZeroDivisionError
    assert not (tmp_path / "new").exists()
    with (
        pytest.raises(UserError, match="cannot be written"),
        new_folder.created(used / "config.json", "cnn"),
    ):
        pass


# On all of MNIST.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "least"),
    [("softmax", 0.920), ("mlp", 0.980), ("cnn", 0.9945), ("cnn:fast", 0.990)],
)
def test_recipes_reach_their_accuracy(name, least, mnist_dir, tmp_path):
    accuracies = []
    for seed in range(3):
        workdir = tmp_path / str(seed)
        flags = [f"--config={name}", f"--config.seed={seed}", f"--workdir={workdir}"]
        flags += [f"--config.data.dir={mnist_dir}", "--config.mesh.data=1"]
        assert train.main(flags) == 0
        summary = json.loads((workdir / "summary.json").read_text())
        assert summary["test"]["count"] == 10_000
        accuracies.append(summary["test"]["accuracy"])
    assert np.mean(accuracies) >= least, accuracies
