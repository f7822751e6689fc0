"""Kills, full disks, damage and signals at any moment lose nothing that was saved."""

import errno
import functools
import itertools
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error

import flax.linen as nn
import jax
import numpy as np
import pytest
from helpers import SEED, assert_identical, lines, saved, shown, timeless, tiny_config

from flaxmnist import config as configs
from flaxmnist.errors import UserError
from flaxmnist.inference.saved_run import open_run
from flaxmnist.rundir import commit, folder, manifest, metrics_log, verify
from flaxmnist.rundir.checkpoints import Checkpoints
from flaxmnist.runtime.console import process_age
from flaxmnist.training import loop, resume
from flaxmnist.training.experiment import Experiment

KILLS = int(os.environ.get("FLAXMNIST_FAULTS_KILLS", "60"))


def bare(tree):
    """Returns the arrays of a checkpoint as NumPy arrays."""
    key = jax.random.key_data(tree["state"].key)
    return jax.device_get(tree | {"state": tree["state"].replace(key=key)})


def of_step(tree, step):
    """Returns the same arrays with another step."""
    number = jax.device_put(np.int32(step), tree["state"].step.sharding)
    return tree | {"state": tree["state"].replace(step=number)}


def assert_same_run(config, one, other):
    """Checks that both directories contain the same finished run, bit for bit."""
    ours, record = saved(config, one)
    theirs, expected = saved(config, other)
    assert_identical(ours, theirs)
    assert record.best == expected.best
    assert timeless(lines(one)) == timeless(lines(other))
    assert (one / "config.json").read_bytes() == (other / "config.json").read_bytes()
    summaries = [json.loads((run / "summary.json").read_text()) for run in (one, other)]
    for summary in summaries:
        del summary["seconds"], summary["images_per_second"]
    assert summaries[0] == summaries[1]

    def names(run):
        return sorted(
            str(path.relative_to(run))
            for path in [*run.iterdir(), *run.glob("plots/*")]
        )

    assert names(one) == names(other)
    # Complete checkpoints only; a process may have ended before it deleted an old one.
    there = {path.name for path in (one / "checkpoints").iterdir()}
    assert there >= {path.name for path in (other / "checkpoints").iterdir()}
    for step in there:
        saved(config, one, int(step))


# kill -9


# Counts Python's file operations in the run directory, and dies at a given one.
KILLED = """
import os, signal, sys

workdir, left = sys.argv[1], int(sys.argv[2])
watched = {"open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.scandir"}

def watch(event, args):
    global left
    if event in watched and any(str(arg).startswith(workdir) for arg in args[:2]):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(watch)
from flaxmnist.cli import train

code = train.main([f"--workdir={workdir}", *sys.argv[3:]])
print("events", -left)
sys.exit(code)
"""
FLAGS = [
    "--config=mlp:smoke",
    "--config.model.hidden=8",
    "--config.num_steps=200",
    "--config.batch_size=50",
    "--config.log_every=15",
    "--config.eval_every=35",
    "--config.checkpoint_every=10",
    "--config.keep_checkpoints=2",
    "--num_cpu_devices=1",
]


def start(run, at=0):
    return subprocess.Popen(
        [sys.executable, "-c", KILLED, str(run), str(at), *FLAGS],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_a_run_killed_at_any_moment_resumes_to_the_result_of_an_undisturbed_run(
    tmp_path,
):
    undisturbed = tmp_path / "undisturbed"
    began = time.monotonic()
    process = start(undisturbed)
    out, error = process.communicate()
    seconds = time.monotonic() - began
    assert process.returncode == 0, error
    events = int(out.split()[-1])
    config = configs.from_json((undisturbed / "config.json").read_text())
    config = configs.override(config, [("mesh.data", "1")])

    draw = random.Random(SEED)
    kills = runs = 0
    while kills < KILLS:
        run, resumed = tmp_path / str(runs), -1
        runs += 1
        while True:
            # Before an operation on a file of the directory, or at any time.
            by_event = draw.random() < 0.6
            left = max(0.3, 1 - resumed / 200)
            process = start(run, draw.randint(1, int(events * left)) if by_event else 0)
            try:
                patience = 600 if by_event else draw.uniform(0, seconds)
                out, error = process.communicate(timeout=patience)
            except subprocess.TimeoutExpired:
                process.kill()
                out, error = process.communicate()
            # No saved checkpoint is missing or treated as damaged.
            assert "damaged" not in error
            if found := re.search(r"(?:resumes|is finished) at step (\d+)", out):
                assert int(found[1]) >= resumed
                resumed = int(found[1])
            steps = folder.saved_steps(run)
            assert not steps or steps[-1] >= resumed
            resumed = max([resumed, *steps])
            print(
                f"run {runs}, {'event' if by_event else 'time'}: "
                f"exit {process.returncode}, saved {steps}",
                flush=True,
            )
            if process.returncode == 0:
                break
            assert process.returncode == -signal.SIGKILL, error
            kills += 1
        assert_same_run(config, run, undisturbed)
        assert not (run / "damaged-checkpoints").exists()
        for split in ("train", "validation"):
            assert shown(run, split) == shown(undisturbed, split)
        shutil.rmtree(run)
    print(f"{kills} kills in {runs} runs, of which each was resumed to its end")


# A full disk, and a directory that is read-only or missing


@pytest.fixture
def small_disk(tmp_path):
    """Yields the directory of a file system of 4 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m,nr_inodes=2000", "tmpfs", disk]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs to mount a tmpfs, as root may: {error}")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def fill(disk, blocks_left=0, inodes_left=0):
    """Fills a disk except for a number of blocks of 4 KiB and of files."""
    ballast = disk / "ballast"
    ballast.mkdir()
    left = os.statvfs(disk).f_ffree
    for number in range(max(0, left - 1 - inodes_left) if inodes_left else 0):
        (ballast / str(number)).touch()
    with (ballast / "blocks").open("wb", buffering=0) as file:
        for _ in range(max(0, os.statvfs(disk).f_bavail - blocks_left)):
            file.write(bytes(4096))


def no_room(run):
    fill(run.parent)
    return lambda: shutil.rmtree(run.parent / "ballast")


def no_permission(run):
    # Root ignores modes, but not the immutable flag.
    folder = run / "checkpoints"
    if os.getuid():
        folder.chmod(0o500)
        return lambda: folder.chmod(0o700)
    if subprocess.run(["chattr", "+i", folder], capture_output=True).returncode:
        pytest.skip("this file system has no immutable folders")
    return lambda: subprocess.run(["chattr", "-i", folder], check=True)


def gone(run):
    run.rename(run.with_name("moved"))
    return lambda: run.with_name("moved").rename(run)


def unreliable(run):
    flush = os.fsync

    def fail(file):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    os.fsync = fail
    return lambda: setattr(os, "fsync", flush)


FAULTS = [
    (no_room, "before it is saved", r"\(No space left on device: .*checkpoints"),
    (gone, "before a line is written", r"\(No such file .*run\)"),
]
FURTHER_FAULTS = [
    (unreliable, "before it is saved", r"\(Input/output error"),
    (no_room, "before a line is written", r"\(No space left on device"),
    (no_permission, "before it is saved", r"\((Operation not|Permission).*checkpoints"),
    (gone, "before it is saved", r"\(No such file .*run\)"),
]


@pytest.mark.parametrize(
    ("fault", "when", "said"),
    FAULTS + [pytest.param(*one, marks=pytest.mark.slow) for one in FURTHER_FAULTS],
)
def test_a_failing_directory_is_a_clear_error_and_the_run_resumes_later(
    fault, when, said, finished_run, small_disk, tmp_path, monkeypatch
):
    run = (small_disk if fault is no_room else tmp_path) / "run"
    mend = []

    def failing(method):
        def call(self, step, *args):
            if getattr(step, "step", step) == 30 + 10 * by_save:
                while folder.saved_steps(run) != [20]:
                    time.sleep(0.01)
                mend.append(fault(run))
            return method(self, step, *args)

        return call

    by_save = when == "before it is saved"
    owner, name = (
        (Checkpoints, "save") if by_save else (metrics_log.MetricsWriter, "write")
    )
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, failing(getattr(owner, name)))
        began = time.monotonic()
        with pytest.raises(UserError, match="cannot be written any more") as raised:
            loop.train_and_evaluate(tiny_config(), run)
    assert time.monotonic() - began < 60
    assert re.search(said, str(raised.value))
    # The directory was renamed or removed: its content is unchanged.
    assert not run.exists() or folder.saved_steps(run) == [20]
    if run.exists():
        assert "step 20 is saved, and the same command resumes" in str(raised.value)
    mend[0]()
    assert folder.saved_steps(run) == [20]
    loop.train_and_evaluate(tiny_config(), run)
    assert_same_run(tiny_config(), run, finished_run[0])


def test_a_replaced_metrics_file_is_an_error(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with metrics_log.MetricsWriter(tmp_path, 0, ()) as writer:
        path.unlink()
        path.touch()
        with pytest.raises(FileNotFoundError, match=r"metrics\.jsonl"):
            writer.write(metrics_log.Record(1, 0.1, "train", 1.0, 0.5))


def test_a_missing_checkpoint_directory_is_not_created_again(tmp_path):
    with (
        Checkpoints(tmp_path / "gone") as checkpoints,
        pytest.raises(FileNotFoundError, match="gone"),
    ):
        checkpoints.save(1, {}, {}, None)
    assert list(tmp_path.iterdir()) == []


# One run per directory


HOLDING = """
import sys, time
from pathlib import Path
from flaxmnist.rundir import folder

with folder.locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_run_in_a_directory_is_refused_until_the_first_has_died(
    finished_run, tmp_path
):
    run = shutil.copytree(finished_run[0], tmp_path / "run")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDING, run], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    said = (
        rf"{run} is in use by process {holder.pid} on \S+ since \d{{4}}-.* UTC; wait "
        "for it, or use another"
    )
    with pytest.raises(UserError, match=said):
        loop.train_and_evaluate(tiny_config(num_steps=60), run)
    after = {path: path.read_bytes() for path in before if path.name != ".lock"}
    assert after == {path: before[path] for path in after}
    # Reading requires no lock.
    assert saved(tiny_config(), run)[1].total_steps == 40
    holder.kill()
    holder.communicate()
    summary = loop.train_and_evaluate(tiny_config(num_steps=60), run)
    assert summary.step == 60


def test_a_run_is_locked_before_it_is_read(finished_run, tmp_path, monkeypatch):
    begin, looks = loop.begin, []

    def look_slowly(run):
        looks.append(tmp_path / "run")
        with pytest.raises(UserError, match="is in use by process"):
            loop.train_and_evaluate(tiny_config(seed=7), tmp_path / "run")
        assert len(looks) == 1
        return begin(run)

    monkeypatch.setattr(loop, "begin", look_slowly)
    monkeypatch.setattr(loop, "finish", lambda *args: None)
    loop.train_and_evaluate(tiny_config(), tmp_path / "run")
    assert looks
    assert (tmp_path / "run" / "config.json").read_bytes() == (
        finished_run[0] / "config.json"
    ).read_bytes()


def test_a_lock_that_its_owner_removes_meanwhile_is_created_again(
    tmp_path, monkeypatch
):
    run, claim = tmp_path / "runs" / "a", folder._claim
    first = folder.Lock(run)
    with pytest.raises(UserError, match="in use"):
        folder.Lock(run)

    def claim_after(*args):
        if not first._file.closed:  # Between the opening of the file and its locking.
            first.release()
        claim(*args)

    with monkeypatch.context() as patch:
        patch.setattr(folder, "_claim", claim_after)
        second = folder.Lock(run)
    second.check()
    with pytest.raises(UserError, match="in use"):
        folder.Lock(run)
    second.release()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_cannot_be_written_leaves_nothing_behind(tmp_path, monkeypatch):
    def no_space(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(folder, "_claim", no_space)
    with (
        pytest.raises(UserError, match=r"runs/a cannot be written \(No space left"),
        folder.locked(tmp_path / "runs" / "a"),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_unreadable_disk_does_not_hide_the_error(tmp_path, monkeypatch):
    def unreadable(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def write():
        with monkeypatch.context() as patch, folder.locked(tmp_path / "run"):
            patch.setattr(os, "listdir", unreadable)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(UserError, match=r"any more \(No space.*nothing in it was del"):
        write()


@pytest.mark.parametrize(
    "error",
    [
        OSError("no weights"),
        urllib.error.HTTPError("run/weights", 404, "Not Found", {}, None),
        ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)),
        socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
    ],
)
def test_an_error_of_the_network_is_no_error_of_the_directory(
    error, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(type(error)) as raised, folder.locked(tmp_path / "run"):
        raise error
    assert raised.value is error


class Pretrained(nn.Module):
    file: str

    @nn.compact
    def __call__(self, images, *, train):
        return np.load(self.file)


@pytest.mark.parametrize(
    ("file", "kind"),
    [("weights.npy", FileNotFoundError), ("run/weights.npy", UserError)],
)
def test_a_missing_file_of_a_model_is_no_error_of_the_directory(
    file, kind, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    config = tiny_config(model={"name": Pretrained, "file": file})
    with pytest.raises(kind, match=f"No such file .*{file}"):
        loop.train_and_evaluate(config, "run")
    assert list(tmp_path.iterdir()) == []


# The class that writes, its method, and the call at which the directory is replaced.
WRITES = {
    "before a line is written": (metrics_log.MetricsWriter, "write", 5),
    "before it is saved": (Checkpoints, "save", 1),
    "before Orbax saves it": (verify, "checksums", 2),
}


@pytest.mark.parametrize("when", WRITES)
def test_a_run_writes_nothing_into_a_directory_that_another_run_took_over(
    when, finished_run, tmp_path, monkeypatch
):
    run, old = tmp_path / "run", tmp_path / "old"
    owner, name, number = WRITES[when]
    method, calls = getattr(owner, name), itertools.count(1)
    steps = [20] if number > 1 else []
    unfinished = run / "checkpoints" / "60.orbax-checkpoint-tmp"

    def taken(*args):
        if next(calls) == number:
            while folder.saved_steps(run) != steps:
                time.sleep(0.01)
            run.rename(old)
            shutil.copytree(finished_run[0], run)
            unfinished.mkdir()
        return method(*args)

    monkeypatch.setattr(owner, name, taken)
    with pytest.raises(UserError, match="no longer the directory that this run locked"):
        loop.train_and_evaluate(tiny_config(), run)
    there = [path.relative_to(run) for path in run.rglob("*") if path.is_file()]
    assert len(there) == sum(path.is_file() for path in finished_run[0].rglob("*"))
    for path in there:
        assert (run / path).read_bytes() == (finished_run[0] / path).read_bytes()
    assert unfinished.is_dir()
    assert folder.saved_steps(old) == steps


# Formats


def rewrite(run, step, change):
    path = run / "checkpoints" / str(step) / "record" / "metadata"
    record = json.loads(path.read_text())
    del record["checksum"]
    path.write_text(json.dumps(change(record)))


def first_format(record):
    del record["format"], record["validation"], record["step"], record["metrics"]
    del record["dataset"]["fingerprints"]
    return record


def test_the_first_checkpoint_format_is_read_and_a_future_one_is_refused(
    finished_run, tmp_path, monkeypatch
):
    run = shutil.copytree(finished_run[0], tmp_path / "run")
    for step in (20, 40):
        rewrite(run, step, first_format)
    expected, _ = saved(tiny_config(), finished_run[0])
    assert_identical(saved(tiny_config(), run)[0], expected)
    loop.train_and_evaluate(tiny_config(num_steps=60), run)

    with monkeypatch.context() as patch:
        patch.setattr(manifest, "FORMAT", 3)
        rewrite(run, 60, manifest.with_checksum)
    before = sorted(run.rglob("*"))
    with pytest.raises(UserError, match=r"60 is of format 3, .* reads up to 2: use"):
        loop.train_and_evaluate(tiny_config(num_steps=80), run)
    assert sorted(run.rglob("*")) == before


@pytest.mark.parametrize("written", [{}, {"lines": 3}, {"lines": "a", "checksum": 1}])
def test_a_record_with_wrong_line_counts_is_damage(written, finished_run, tmp_path):
    run = shutil.copytree(finished_run[0], tmp_path / "run")
    rewrite(run, 40, lambda record: first_format(record) | {"metrics": written})
    expected = functools.partial(resume.expected, Experiment.build(tiny_config()))
    warnings = []
    with Checkpoints(run / "checkpoints", warn=warnings.append) as checkpoints:
        step, *_ = checkpoints.restore_newest(expected)
    assert step == 20
    assert "the checkpoint of step 40 in" in warnings[0]


def test_checkpoints_without_a_save_leave_no_thread_at_exit(tmp_path):
    """A thread of Orbax that still runs cannot end while the interpreter exits."""
    before = set(threading.enumerate())
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.wait()
    assert set(threading.enumerate()) <= before


# Damage


def harms(path, draw):
    """Yields changed contents of a file, and None for a missing file."""
    content = path.read_bytes()
    yield "missing", None
    for length in {0, len(content) // 2, max(0, len(content) - 1)}:
        yield f"cut to {length}", content[:length]
    for place in sorted({draw.randrange(len(content)) for _ in range(5)}):
        flipped = bytearray(content)
        flipped[place] ^= 1 << draw.randrange(8)
        yield f"flipped at {place}", bytes(flipped)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ESTALE, "Stale file handle"), r"be read or written \(Stale"),
        (OSError(errno.EHOSTDOWN, "Host is down"), r"be read or written \(Host is"),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 9 GB"), "^RESOURCE_EXHAUSTED"),
        (RuntimeError("can't start new thread"), "^can't start"),
    ],
)
def test_a_failure_of_the_machine_is_no_damage(error, said, finished_run, tmp_path):
    def fail(manifest):
        raise error

    run = shutil.copytree(finished_run[0], tmp_path / "run")
    with Checkpoints(run / "checkpoints") as checkpoints:
        with pytest.raises((UserError, RuntimeError), match=said):
            checkpoints.restore_newest(fail)
        assert checkpoints.steps == [20, 40]


@pytest.mark.parametrize("change", [manifest.with_checksum, first_format])
@pytest.mark.parametrize("name", ["55", "3"])
def test_a_checkpoint_under_another_name_is_set_aside(
    name, change, finished_run, tmp_path, monkeypatch
):
    run = shutil.copytree(finished_run[0], tmp_path / "run")
    rewrite(run, 40, change)
    (run / "checkpoints" / "40").rename(run / "checkpoints" / name)
    with pytest.raises(UserError, match=rf"of step {name} .* is damaged \(its content"):
        open_run(run)
    for other in ("020", "²", "٢٠"):
        (run / "checkpoints" / other).mkdir()
    warnings = []
    with Checkpoints(run / "checkpoints", warn=warnings.append) as checkpoints:
        assert checkpoints.steps == folder.saved_steps(run) == [20]
    assert len(warnings) == 1
    assert f"the checkpoint of step {name} in" in warnings[0]
    if change is manifest.with_checksum:
        assert "its content is of step 40" in warnings[0]
    assert len(list((run / "damaged-checkpoints").iterdir())) == 1


@pytest.mark.slow
def test_no_wrong_value_is_read_from_a_changed_checkpoint_file(finished_run, tmp_path):
    expected = functools.partial(resume.expected, Experiment.build(tiny_config()))
    source = finished_run[0] / "checkpoints"
    trees = {step: saved(tiny_config(), finished_run[0], step) for step in (20, 40)}
    draw = random.Random(SEED)
    counts = dict.fromkeys(("put aside", "harmless"), 0)
    for file in sorted(path for path in (source / "40").rglob("*") if path.is_file()):
        name = file.relative_to(source)
        outcomes = []
        for harm, content in harms(file, draw):
            run = tmp_path / "run"
            shutil.copytree(source, run / "checkpoints")
            if content is None:
                (run / "checkpoints" / name).unlink()
            else:
                (run / "checkpoints" / name).write_bytes(content)
            warnings = []
            with Checkpoints(run / "checkpoints", warn=warnings.append) as checkpoints:
                step, tree, record = checkpoints.restore_newest(expected)
                best = checkpoints.best_step
            assert_identical(bare(tree), trees[step][0])
            assert record.best == trees[step][1].best, (name, harm)
            assert record.config == trees[step][1].config, (name, harm)
            assert best == step, (name, harm)
            if step == 20:
                (warning,) = warnings
                assert "the checkpoint of step 40" in warning, (name, harm)
                assert (run / "damaged-checkpoints").is_dir()
            else:
                assert warnings == [], (name, harm)
            outcome = "put aside" if step == 20 else "harmless"
            counts[outcome] += 1
            outcomes.append(f"{harm}: {outcome}")
            shutil.rmtree(run)
        print(name, "; ".join(outcomes), flush=True)
    print(counts)
    assert counts["put aside"] >= 50


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda kept: kept[:2] + kept[4:], "2 of 6 lines are missing"),
        (lambda kept: [kept[0].replace("0.", "1."), *kept[1:]], "its 6 lines differ"),
        (lambda kept: [], "6 of 6 lines are missing"),
        (lambda kept: [*kept, kept[-1].replace("40", "41")], None),
    ],
)
def test_a_resumed_run_warns_of_lost_metrics_lines(
    change, said, finished_run, tmp_path, monkeypatch, capsys
):
    run = shutil.copytree(finished_run[0], tmp_path / "run")
    path = run / "metrics.jsonl"
    path.write_text("".join(change(path.read_text().splitlines(keepends=True))))
    left = lines(run)
    monkeypatch.setattr(loop, "finish", lambda *args: None)
    for time_given in range(2):
        loop.train_and_evaluate(tiny_config(num_steps=50 + 5 * time_given), run)
        error = capsys.readouterr().err
        if said and not time_given:
            assert f"was changed since step 40 was saved: up to that step, {said}" in (
                " ".join(error.split())
            )
        else:
            assert error == ""
    kept = [record for record in left if record["step"] <= 40]
    assert lines(run)[: len(kept)] == kept
    assert lines(run)[-1]["step"] == 55


# Clocks and slow disks


def test_a_clock_that_goes_backwards_loses_and_reorders_nothing(
    finished_run, tmp_path, monkeypatch
):
    run, clock = tmp_path / "run", itertools.count(int(time.time()), -3600)
    started = time.perf_counter() - process_age()
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    monkeypatch.setattr(time, "time_ns", lambda: next(clock) * 10**9)
    loop.train_and_evaluate(tiny_config(num_steps=20), run)
    resumed = loop.train_and_evaluate(tiny_config(), run, started=started)
    # The clock loses an hour at each reading: none of these hours is counted.
    seconds = resumed.seconds
    assert all(0 <= part <= time.perf_counter() - started for part in seconds.values())
    assert time.perf_counter() - process_age() == pytest.approx(started, abs=60)
    assert folder.saved_steps(run) == [20, 40]
    assert_identical(
        saved(tiny_config(), run)[0], saved(tiny_config(), finished_run[0])[0]
    )
    assert timeless(lines(run)) == timeless(lines(finished_run[0]))
    for split in ("train", "validation"):
        assert shown(run, split) == shown(finished_run[0], split)


def test_slow_saving_delays_training_and_keeps_the_order(
    finished_run, tmp_path, monkeypatch
):
    finalize, save = commit.SyncedPath.finalize, Checkpoints.save
    happened = []

    async def slow_finalize(self):
        if self.get_final().name.isdigit():
            time.sleep(0.3)
            happened.append(("saved", int(self.get_final().name)))
        await finalize(self)

    def noted_save(self, step, *args):
        save(self, step, *args)
        happened.append(("given", step))

    monkeypatch.setattr(commit.SyncedPath, "finalize", slow_finalize)
    monkeypatch.setattr(Checkpoints, "save", noted_save)
    loop.train_and_evaluate(tiny_config(checkpoint_every=4), tmp_path)
    steps = list(range(4, 41, 4))
    for event in ("given", "saved"):
        assert [step for what, step in happened if what == event] == steps
    # At most one copy of the state waits to be written.
    waiting = 0
    for what, _ in happened:
        waiting += 1 if what == "given" else -1
        assert waiting <= 1
    assert folder.saved_steps(tmp_path) == [32, 36, 40]
    assert timeless(lines(tmp_path)) == timeless(lines(finished_run[0]))


@pytest.mark.slow
def test_a_disk_that_fills_while_saving_keeps_the_previous_checkpoint(
    finished_run, small_disk
):
    expected = functools.partial(resume.expected, Experiment.build(tiny_config()))
    source = Checkpoints(finished_run[0] / "checkpoints", read_only=True)
    tree, record = source.restore(40, expected)
    outcomes = []
    for kind, left in [("blocks", n) for n in range(40)] + [
        ("inodes", n) for n in range(1, 60)
    ]:
        run = small_disk / "run"
        shutil.copytree(finished_run[0] / "checkpoints", run / "checkpoints")
        fill(small_disk, **{f"{kind}_left": left})
        try:
            with Checkpoints(run / "checkpoints") as checkpoints:
                checkpoints.save(60, of_step(tree, 60), record, None)
            outcomes.append("saved")
        except OSError as error:
            outcomes.append(error.strerror)
        shutil.rmtree(small_disk / "ballast")
        # The checkpoint is complete or missing.
        with Checkpoints(run / "checkpoints", warn=pytest.fail) as checkpoints:
            step, found, _ = checkpoints.restore_newest(expected)
            assert step == (60 if outcomes[-1] == "saved" else 40)
            assert_identical(bare(found), bare(of_step(tree, step)))
            checkpoints.save(80, of_step(tree, 80), record, None)
        shutil.rmtree(run)
    print({outcome: outcomes.count(outcome) for outcome in set(outcomes)})
    assert {"saved", "No space left on device"} == set(outcomes)


# Signals


SLOW = """
import sys, time
from flaxmnist.cli import train
from flaxmnist.rundir.commit import SyncedPath

finalize = SyncedPath.finalize
async def slow_finalize(self):
    if self.get_final().name.isdigit() and int(self.get_final().name) > 20:
        print("saving", flush=True)
        time.sleep(600)
    await finalize(self)
SyncedPath.finalize = slow_finalize
sys.exit(train.main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_while_saving_ends_the_run_and_loses_nothing(number, tmp_path):
    flags = [*FLAGS, "--config.checkpoint_every=20", f"--workdir={tmp_path}"]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while "saving" not in process.stdout.readline():
        pass
    process.send_signal(number)
    with pytest.raises(subprocess.TimeoutExpired):  # The first waits for the disk.
        process.wait(timeout=5)
    began = time.monotonic()
    process.send_signal(number)
    _, error = process.communicate()
    assert time.monotonic() - began < 5
    assert (process.returncode, error) == (-number, "")
    config = configs.from_json((tmp_path / "config.json").read_text())
    config = configs.override(config, [("mesh.data", "1")])
    assert folder.saved_steps(tmp_path) == [20]
    assert saved(config, tmp_path)[1].best.step is None


# Readers


READING = """
import sys
from pathlib import Path
from flaxmnist.errors import UserError
from flaxmnist.inference.saved_run import open_run

while not (Path(sys.argv[1]) / "checkpoints" / "10").exists():
    pass
read = late = 0
while not (Path(sys.argv[1]) / "summary.json").exists():
    try:
        open_run(sys.argv[1])
        read += 1
    except UserError as error:
        assert "was deleted by another run" in str(error), error
        late += 1
print(read, late)
"""


@pytest.mark.slow
def test_a_run_may_be_read_while_it_trains(tmp_path):
    reader = subprocess.Popen(
        [sys.executable, "-c", READING, tmp_path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    flags = ["--config.num_steps=2000", "--config.keep_checkpoints=3"]
    done = subprocess.run(
        [sys.executable, "-m", "flaxmnist.main", *FLAGS, *flags, "--workdir", tmp_path],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    out, error = reader.communicate()
    assert reader.returncode == 0, error
    read, late = map(int, out.split())
    print(f"read {read} times, and {late} times too late")
    assert read >= 10
