"""Failures of the machine give one clear line and change nothing."""

import errno
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import warnings

import jax
import pytest
from helpers import tiny_config

from flaxmnist.cli import demo, eval, export, predict, report, train
from flaxmnist.runtime import logs
from flaxmnist.runtime.failures import explain
from flaxmnist.training import loop, sanity

# Paths that may not be used: a path is refused if it begins with one of these.
FORBIDDEN = []
USES = {"open", "os.listdir", "os.scandir", "os.mkdir", "os.rename", "os.remove"}


def refuse(event, args):
    if not FORBIDDEN or event not in USES or isinstance(args[0], int | bytes | None):
        return
    if os.path.abspath(args[0]).startswith(tuple(FORBIDDEN)):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), args[0])


@pytest.fixture
def forbid():
    """Refuses the use of paths, as the system does to users other than root."""
    if not hasattr(refuse, "added"):
        sys.addaudithook(refuse)
        refuse.added = True
    yield lambda path: FORBIDDEN.append(str(path))
    FORBIDDEN.clear()


def content(folder):
    return {
        path: path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


COMMANDS = {
    "train": (train, "--config.num_steps=60"),
    "eval": (eval,),
    "predict a split": (predict, "--split=test"),
    "report": (report,),
    "export": (export, "--format=numpy"),
    "predict": (predict, "digit.png"),
    "demo": (demo,),
}


@pytest.mark.parametrize("name", sorted(COMMANDS))
@pytest.mark.parametrize("part", ["", "checkpoints"])
def test_an_unreadable_directory_is_a_clear_error(
    name, part, finished_run, tmp_path, capsys, forbid
):
    run = shutil.copytree(finished_run[0], tmp_path / "run")
    before = content(run)
    module, *flags = COMMANDS[name]
    forbid(run / part)
    code = module.main([f"--workdir={run}", *flags])
    FORBIDDEN.clear()
    (line,) = capsys.readouterr().err.splitlines()
    assert code == 2
    assert line.startswith("flaxmnist: ")
    assert "Permission denied" in line
    assert content(run) == before


@pytest.mark.parametrize("name", ["arrays/d", "record/metadata"])
def test_an_unreadable_file_of_a_checkpoint_is_named(
    name, finished_run, tmp_path, capsys, forbid, monkeypatch
):
    run = shutil.copytree(finished_run[0], tmp_path / "run")
    path, before = run / "checkpoints" / "40" / name, content(run)
    flags = [f"--workdir={run}", "--config.num_steps=60"]
    forbid(path)
    assert train.main(flags) == 2
    FORBIDDEN.clear()
    # As for a user who may list the directory, but not open the file.
    monkeypatch.setattr(os, "access", lambda tried, mode: not tried.match(str(path)))
    assert train.main(flags) == 2
    for line in capsys.readouterr().err.splitlines():
        assert f"{path} cannot be read or written (Permission denied)" in line
    assert content(run) == before


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            PermissionError(errno.EACCES, "denied", "a"),
            r"a cannot .* \(denied\); .*perm",
        ),
        (OSError(errno.ENOSPC, "no space"), r"a file cannot .* \(no space\); free"),
        (OSError(errno.EIO, "I/O error", b"a"), r"a cannot .*check that path"),
        (OSError(errno.EMFILE, "Too many open files", "a"), r"ulimit -n"),
        (MemoryError(), r"out of memory \(MemoryError\); .* batch_size"),
        (RuntimeError("can't start new thread"), r"new thread; .*ulimit -u"),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 9 GB"), r"\(RESOURCE_EXH"),
        (OSError("of a library"), None),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), None),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), None),
        (RuntimeError("a defect"), None),
    ],
)
def test_failures_of_the_machine_are_explained_and_defects_are_not(error, said):
    text = explain(error)
    assert text is None if said is None else re.search(said, text)


def test_a_quiet_logger_stays_quiet():
    logger = logging.getLogger("quiet")
    with logs.at_levels(quiet=logging.CRITICAL):
        with logs.at_levels(quiet=logging.ERROR):
            assert logger.level == logging.CRITICAL
        assert logger.level == logging.CRITICAL
    assert logger.level == logging.NOTSET


def test_the_users_logging_and_warnings_are_left_as_they_were(finished_run, tmp_path):
    def settings():
        names = ("", "absl", "jax", "orbax", "flaxmnist")
        levels = [logging.getLogger(name).level for name in names]
        return levels, list(warnings.filters)

    before = settings()
    run = shutil.copytree(finished_run[0], tmp_path / "run")
    assert train.main([f"--workdir={run}"]) == 0
    assert eval.main([f"--workdir={tmp_path}/none"]) == 2
    loop.train_and_evaluate(tiny_config(num_steps=41), run)
    assert settings() == before


@pytest.mark.slow
@pytest.mark.parametrize("mode", [0o000, 0o555])
@pytest.mark.parametrize("part", ["", "checkpoints", "checkpoints/40", "config.json"])
def test_modes_of_a_run_directory(mode, part, finished_run, tmp_path):
    # As root, but without the capability to ignore modes.
    limited = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    if os.getuid() or subprocess.run([*limited, "true"]).returncode:
        pytest.skip("needs to be root, and setpriv")
    run = shutil.copytree(finished_run[0], tmp_path / "run")
    (run / part).chmod(mode)
    for module, *flags in COMMANDS.values():
        name = module.__name__.rpartition(".")[2]
        if module is demo and mode:
            continue  # It succeeds and keeps running.
        command = [sys.executable, "-m", "flaxmnist", name, f"--workdir={run}", *flags]
        done = subprocess.run([*limited, *command], capture_output=True, text=True)
        print(name, done.returncode, done.stderr)
        assert (done.returncode, done.stderr.count("\n")) in ((0, 0), (1, 1), (2, 1))
        assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_step_runs_without_compilation(capsys):
    with jax.disable_jit():
        sanity.dry_run(tiny_config(model={"name": "softmax"}, batch_size=10))
    assert "a training step: loss" in capsys.readouterr().out
