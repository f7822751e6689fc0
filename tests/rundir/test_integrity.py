"""Changed, damaged and malicious run directories are read or refused."""

import collections
import contextlib
import dataclasses
import itertools
import json
import os
import random
import shutil
import subprocess

import pytest
from helpers import SEED, tiny_config

from flaxmnist import config as configs
from flaxmnist.cli import export, report, train
from flaxmnist.errors import DamagedError, UserError
from flaxmnist.export.card import Card
from flaxmnist.inference.saved_run import open_run
from flaxmnist.report import html
from flaxmnist.report.comparison import Group, compare
from flaxmnist.rundir import folder as workdirs
from flaxmnist.rundir import integrity, metrics_log, tensorboard
from flaxmnist.rundir.checkpoints import Checkpoints
from flaxmnist.rundir.history import History
from flaxmnist.training import loop


@pytest.fixture
def run(finished_run, tmp_path):
    return shutil.copytree(finished_run[0], tmp_path / "run")


# Links: nothing is written, changed or deleted outside the directory


LINKS = [
    *integrity.FILES,
    *integrity.FOLDERS,
    "checkpoints/60",
    "checkpoints/deleted.orbax-checkpoint-tmp",
    "damaged-checkpoints/40",
    "export/numpy",
    "export/.partial-1",
    "plots/curves.png",
    "tensorboard/train",
]


def content(folder):
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


@pytest.mark.parametrize("name", LINKS)
def test_nothing_is_written_through_a_link(name, run, finished_run, tmp_path):
    outside = tmp_path / "outside"
    (outside / "folder" / "numpy.partial-1").mkdir(parents=True)
    (outside / "file").write_text("mine")
    place = run / name
    if place.is_dir():
        shutil.rmtree(place)
    place.parent.mkdir(exist_ok=True)
    before = content(outside)
    opened = dataclasses.replace(open_run(finished_run[0]), workdir=run)
    for target in ("file", "folder", "missing"):
        place.unlink(missing_ok=True)
        place.symlink_to(outside / target)
        inside = content(run)
        for call in (
            lambda: loop.train_and_evaluate(tiny_config(), run),
            opened.predict_split,
            opened.report,
            lambda: opened.export("numpy"),
        ):
            with pytest.raises(UserError, match=f"{place} is a link, and a run writes"):
                call()
        assert content(outside) == before
        assert content(run) == inside


def test_a_lock_with_another_name_is_not_overwritten(run, tmp_path):
    startup = tmp_path / "bashrc"
    startup.write_text("mine")
    (run / ".lock").unlink()
    os.link(startup, run / ".lock")
    with pytest.raises(UserError, match=r"\.lock is a link"):
        loop.train_and_evaluate(tiny_config(), run)
    assert startup.read_text() == "mine"


def test_only_our_own_partial_files_are_deleted(run):
    (run / "plots").mkdir()
    killed = subprocess.Popen(["true"])
    killed.wait()
    ours = [
        run / f"config.json.partial-{os.getpid()}",
        run / "plots" / f"curves.png.partial-{killed.pid}",
    ]
    theirs = [run / "notes.partial-1", run / "plots" / "curves.png.partial-old"]
    ours.append(run / f"label_errors.csv.partial-{'9' * 20}")
    # As of a command that reads the run while it trains.
    theirs.append(run / f"report.html.partial-{os.getppid()}")
    for path in (*ours, *theirs):
        path.touch()
    (run / "summary.json.partial-1").mkdir()
    integrity.remove_partial(run)
    assert not any(path.exists() for path in ours)
    assert all(path.exists() for path in theirs)
    assert (run / "summary.json.partial-1").is_dir()


def test_a_run_directory_may_be_a_link(run, tmp_path):
    (tmp_path / "link").symlink_to(run)
    summary = loop.train_and_evaluate(tiny_config(), tmp_path / "link")
    assert summary.step == 40


@pytest.mark.parametrize("inside", ["", "run"])
def test_a_run_directory_that_is_a_dangling_link_is_refused(inside, tmp_path):
    link, target = tmp_path / "link", tmp_path / "missing"
    link.symlink_to(target)
    said = f"^--workdir {link / inside} .*{link} is a link whose target {target} does"
    with pytest.raises(UserError, match=said):
        loop.train_and_evaluate(tiny_config(), link / inside)
    assert list(tmp_path.iterdir()) == [link]


# Pipes, devices and endless files in place of regular files


def pipe(path):
    os.mkfifo(path)


def giant(path):
    with path.open("wb") as file:
        file.truncate(1 << 40)


def device(path):
    path.symlink_to("/dev/zero")


def read_everything(run):
    """Reads the files of a run that a resume, a report and an export read."""
    workdirs.check(run, tiny_config())
    workdirs.saved_summary(run)
    list(metrics_log.records(run / "metrics.jsonl"))
    open_run(run)


@pytest.mark.parametrize("make", [pipe, giant, device])
def test_only_regular_files_of_plausible_size_are_read(make, run):
    checked = 0
    for path in sorted([*run.glob("*"), *(run / "checkpoints" / "40").rglob("*")]):
        in_parts = path.parent.name == "d" and make is giant
        if path.is_dir() or in_parts or path.name in (".lock", "commit_success.txt"):
            continue
        saved = path.read_bytes()
        path.unlink()
        make(path)
        if path.name == "summary.json":
            assert workdirs.saved_summary(run) is None
        else:
            with pytest.raises(UserError):
                read_everything(run)
        path.unlink()
        path.write_bytes(saved)
        checked += 1
    assert checked >= 10
    read_everything(run)


# Values that are edited or damaged

DEEP = json.loads("[" * 400 + "]" * 400)
VALUES = (None, "x", "²", [1], {"a": {"b": 1}}, True, -1, 0, DEEP)
VALUES += (float("nan"), 1e999, 10**400, 1e300)


def mutated(value, path=()):
    """Yields a JSON value with one part changed, after a description of the change."""
    # The configuration has its own test.
    if not isinstance(value, dict) or path == ("config",):
        return
    for name, part in value.items():
        for new in VALUES:
            yield (*path, name, repr(new)[:20]), value | {name: new}
        yield (*path, name, "missing"), {k: v for k, v in value.items() if k != name}
        for where, changed in mutated(part, (*path, name)):
            yield where, value | {name: changed}


def summary_card(summary):
    """Returns a model card with everything that a card shows of a summary."""
    return Card(
        format="numpy",
        model=summary.model.name,
        architecture="CNN",
        options={},
        members=0,
        parameters=summary.model.parameters,
        checkpoint=f"step {summary.evaluated_step:,}",
        is_best=True,
        test=summary.test,
        dataset=summary.dataset,
        licence=None,
        versions=summary.versions,
        checked="",
    )


def test_a_changed_summary_is_read_completely_or_refused(run, finished_run):
    path = run / "summary.json"
    summary = json.loads(path.read_text())
    found = workdirs.saved_summary(run)
    for same in (found, finished_run[1]):
        assert json.loads(json.dumps(same.to_json())) == summary
    refused = 0
    for _, changed in itertools.islice(mutated(summary), 0, None, 2):
        path.write_text(json.dumps(changed))
        found = workdirs.saved_summary(run)
        refused += found is None
        if found is not None:  # As a report, an export and a table use it.
            History("run", found, []).recipe  # noqa: B018
            (
                html._splits(found, {}),
                compare([Group((History("run", found, []),))]),
            )
            assert summary_card(found).render(0.0, [])
    assert refused > 150


def test_a_configuration_is_read_or_refused(run):
    path = run / "config.json"
    changes = mutated(json.loads(path.read_text()))
    for where, changed in itertools.islice(changes, 0, None, 3):
        path.write_text(json.dumps(changed))
        with contextlib.suppress(UserError):
            config = workdirs.saved_config(run)
            assert configs.from_dict(configs.as_dict(config)) == config, where


def test_damaged_lines_of_metrics_are_skipped_with_a_warning(run, capsys):
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines()
    whole = list(metrics_log.records(path))
    assert [json.dumps(record) for record in whole] == lines
    bad = [json.dumps(line) for _, line in mutated(json.loads(lines[0]))]
    bad += ["[" * 60_000, "null", "\0" * 200_000, "\udcff", "{}", "x"]
    text = "\n".join([lines[0], *bad, *lines[1:], '{"step": 4'])
    path.write_bytes(text.encode(errors="surrogateescape"))
    found = list(metrics_log.records(path))
    assert [record for record in found if record in whole] == whole
    for record in found:  # Every other value is a number.
        assert all(
            isinstance(value, int | float) and abs(value) < 1e39
            for name, value in record.items()
            if name != "split"
        )
    assert f"! {path}: " in capsys.readouterr().err
    # Curves can be drawn from them.
    figure = html.plots.curves({"run": [found]})
    assert html.plots.png(figure)[:4] == b"\x89PNG"


def test_changed_metadata_of_orbax_are_read_or_reported_as_damage(run):
    folder = run / "checkpoints"
    path = folder / "40" / "_CHECKPOINT_METADATA"
    metadata = json.loads(path.read_text())
    damaged = 0
    for where, changed in mutated(metadata):
        path.write_text(json.dumps(changed))
        try:
            with Checkpoints(folder, read_only=True) as checkpoints:
                assert checkpoints.steps == [20, 40], where
        except DamagedError:
            damaged += 1
    assert damaged > 30


@pytest.mark.parametrize("name", ["²", "٣", "007", "-1", "2147483648", "9" * 200])
def test_directories_whose_names_are_not_steps_are_ignored(name, run):
    shutil.copytree(run / "checkpoints" / "40", run / "checkpoints" / name)
    for warnings in ([], []):
        with Checkpoints(run / "checkpoints", warn=warnings.append) as checkpoints:
            assert checkpoints.steps == [20, 40]
    assert workdirs.saved_steps(run) == [20, 40]
    (run / "tensorboard" / "train" / "events.out.tfevents.².x").touch()
    tensorboard.EventFile(run / "tensorboard" / "train", 0).close()


CHANGED = {
    "config.json": "config.json",
    "summary.json": "summary.json",
    "metrics.jsonl": "metrics.jsonl",
    "Orbax's": "checkpoints/40/_CHECKPOINT_METADATA",
    "record": "checkpoints/40/record/metadata",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CHANGED)
def test_commands_accept_or_refuse_a_run_with_damaged_values(
    name, finished_run, tmp_path, capsys
):
    draw = random.Random(SEED)
    codes = collections.Counter()
    for _ in range(5):
        run = shutil.copytree(finished_run[0], tmp_path / "run")
        path = run / CHANGED[name]
        text, rest = path.read_text(), ""
        if name == "metrics.jsonl":
            text, rest = text.split("\n", 1)
        whole = json.loads(text)
        if name == "record":  # As in the first format, which had no checksum.
            del whole["checksum"], whole["format"]
        where, changed = draw.choice(list(mutated(whole)))
        path.write_text(f"{json.dumps(changed)}\n{rest}")
        for command, flags in (
            (report, []),
            (export, ["--format=numpy"]),
            (train, ["--config.num_steps=60"]),
            (report, []),
        ):
            code = command.main([f"--workdir={run}", *flags])
            codes[command.__name__, code] += 1
            error = capsys.readouterr().err
            assert code == 0 or (code == 2 and "flaxmnist: " in error), where
            # Only files that identify the run may prevent training.
            known = name in ("config.json", "record")
            assert code == 0 or known or command is not train, where
        shutil.rmtree(run)
    print(codes)
