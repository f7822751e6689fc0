"""Several processes train, stop and resume like one process."""

import contextlib
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import free_port, lines, saved

from flaxmnist import config as configs
from flaxmnist.cli import train
from flaxmnist.data.order import Origin
from flaxmnist.rundir import folder, manifest
from flaxmnist.runtime import processes

# 32 steps per epoch of 2,000 examples: logs, evaluations and saves have own steps.
FLAGS = [
    "--config=mlp:smoke",
    "--config.num_steps=40",
    "--config.batch_size=64",
    "--config.model.hidden=(8,)",
    "--config.log_every=10",
    "--config.eval_every=20",
    "--config.checkpoint_every=15",
    "--config.report=False",
]


@contextlib.contextmanager
def start(workdir, count, devices, *flags, script=None):
    """Starts `count` processes with `devices` devices each; they end with the block."""
    started = []
    program = ["-c", script] if script else ["-m", "flaxmnist.main"]
    command = [sys.executable, *program, *FLAGS]
    command += [f"--workdir={workdir}", f"--num_cpu_devices={devices}"]
    command += [f"--coordinator=127.0.0.1:{free_port()}", f"--num_processes={count}"]
    command += ["--process_id={index}", *flags]
    try:
        for index in range(count):
            started.append(
                subprocess.Popen(
                    [flag.replace("{index}", str(index)) for flag in command],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def run(workdir, count, devices, *flags, script=None):
    """Waits for the end; returns each process's exit code, output and errors."""
    with start(workdir, count, devices, *flags, script=script) as started:
        said = [process.communicate(timeout=300) for process in started]
        return [(p.returncode, *texts) for p, texts in zip(started, said, strict=True)]


def alone(workdir, devices, *flags):
    """The same run in this process."""
    code = train.main(
        [*FLAGS, *flags, f"--workdir={workdir}", f"--config.mesh.data={devices}"]
    )
    assert code == 0


def parameters(workdir, step=None, devices=1):
    """Returns the arrays of a checkpoint, on `devices` devices, and its record."""
    config = configs.from_json((Path(workdir) / "config.json").read_text())
    config = configs.override(config, [("mesh.data", str(devices))])
    tree, record = saved(config, workdir, step)
    return jax.tree.leaves(tree["state"]), record


def assert_close(one, other):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one, other
    )


def assert_trained_alike(one, other):
    """Checks for the same steps and figures, and parameters equal within rounding.

    Gloo adds up what devices found in another order than one process does.
    """
    ours, theirs = lines(one), lines(other)
    assert [(r["step"], r["split"]) for r in ours] == [
        (r["step"], r["split"]) for r in theirs
    ]
    for name in ("loss", "accuracy"):
        np.testing.assert_allclose(
            [r[name] for r in ours], [r[name] for r in theirs], rtol=1e-4
        )
    assert_close(parameters(one)[0], parameters(other)[0])


@pytest.mark.slow
def test_two_processes_that_share_a_state_train_as_one(tmp_path):
    first, second = run(tmp_path / "two", 2, 2, "--config.mesh.fsdp=True")
    assert [first[0], second[0]] == [0, 0], (first, second)
    assert "step 40/40" in first[1]
    assert (first[2], second[2]) == ("", "")
    # Gloo, which adds over processes, always prints its connections.
    assert not re.search("step|accuracy|workdir|seconds", second[1])
    alone(tmp_path / "one", 4)
    assert_trained_alike(tmp_path / "two", tmp_path / "one")
    summary = json.loads((tmp_path / "two" / "summary.json").read_text())
    assert summary["devices"]["count"] == 4
    # One process reads what two wrote in parts, on any devices, with valid checksums.
    state, _ = parameters(tmp_path / "two")
    again, _ = parameters(tmp_path / "two", devices=8)
    jax.tree.map(np.testing.assert_array_equal, state, again)
    record = manifest.read_record(tmp_path / "two" / "checkpoints" / "40" / "record")
    assert record["checksums"].keys() == record["arrays"].keys()


@pytest.mark.slow
def test_four_processes_train_as_one(tmp_path):
    said = run(tmp_path / "four", 4, 2)
    assert [code for code, *_ in said] == [0] * 4, said
    alone(tmp_path / "one", 8)
    assert_trained_alike(tmp_path / "four", tmp_path / "one")


def wait_for(process, text):
    for line in process.stdout:
        if text in line:
            return
    raise AssertionError(f"{text!r} was not said: {process.stderr.read()}")


@pytest.mark.slow
def test_a_change_in_several_processes_is_that_in_one(tmp_path):
    changes = ("--config.num_steps=60", "--config.batch_size=32", "--allow_change")
    for flags in ((), changes):
        alone(tmp_path / "alone", 2, *flags)
        for code, _, errors in run(tmp_path / "several", 2, 1, *flags):
            assert code == 0, errors
    found = [lines(tmp_path / name) for name in ("alone", "several")]
    options = [[one for one in each if "options" in one] for each in found]
    change = {"step": 40, "options": {"batch_size": [64, 32]}}
    assert options == [[change], [change]]
    for step in (45, 60):
        (one, _), (other, record) = (
            parameters(tmp_path / name, step, 2) for name in ("alone", "several")
        )
        assert_close(one, other)
        # Nine steps after the first epoch of 31.
        assert record.origin == Origin(40, 1, 9 * 64)


LONG = ("--config.num_steps=100000", "--config.log_every=20")


@pytest.mark.slow
@pytest.mark.parametrize(("count", "victim"), [(2, 0), (2, 1), (3, 2)])
def test_the_others_end_when_one_is_killed_and_all_resume(count, victim, tmp_path):
    with start(tmp_path / "run", count, 1, "--config.batch_size=48", *LONG) as started:
        wait_for(started[0], "step 60/")
        started[victim].kill()
        begun = time.monotonic()
        for index, process in enumerate(started):
            _, err = process.communicate(timeout=60)
            assert process.returncode != 0
            *_, reason, remedy = err.splitlines()
            assert f"process {index} of {count} ended, because" in reason
            assert "with the same command again: the run resumes" in remedy
        assert time.monotonic() - begun < 60
    last = max(
        int(path.name)
        for path in (tmp_path / "run" / "checkpoints").iterdir()
        if path.name.isdigit()
    )
    more = ("--config.batch_size=48", "--config.num_steps=" + str(last + 40))
    said = run(tmp_path / "run", count, 1, *more)
    assert [code for code, *_ in said] == [0] * count, said
    assert f"resumes at step {last}" in said[0][1]


@pytest.mark.slow
@pytest.mark.parametrize("heard_by", [0, 1])
def test_a_signal_to_one_stops_all_at_the_same_step(heard_by, tmp_path):
    with start(tmp_path / "run", 2, 1, *LONG) as started:
        wait_for(started[0], "step 60/")
        started[heard_by].send_signal(signal.SIGTERM)
        said = [process.communicate(timeout=60)[1] for process in started]
        assert [process.returncode for process in started] == [128 + signal.SIGTERM] * 2
    stopped = {line.split(" of ")[0] for err in said for line in err.splitlines()}
    (where,) = stopped
    step = int(where.rsplit(" ", 1)[1])
    assert "stopped at step" in where
    said = run(tmp_path / "run", 2, 1, f"--config.num_steps={step + 20}")
    assert [code for code, *_ in said] == [0, 0], said
    assert f"resumes at step {step}" in said[0][1]


@pytest.mark.slow
def test_a_run_resumes_with_other_devices_and_processes(tmp_path):
    """Saved on four devices, it resumes on one, two, eight, and in two processes."""
    # A schedule that does not depend on the length.
    constant = "--config.optimizer.schedule=constant"
    half, whole = ((f"--config.num_steps={n}", constant) for n in (40, 80))
    alone(tmp_path / "undisturbed", 4, *whole)
    expected = parameters(tmp_path / "undisturbed")[0]

    def copy(name):
        alone(tmp_path / name, 4, *half)
        return tmp_path / name

    for devices in (1, 2, 8):
        alone(copy(str(devices)), devices, *whole)
        assert_trained_alike(tmp_path / str(devices), tmp_path / "undisturbed")
    run(copy("processes"), 2, 2, *whole)
    assert_trained_alike(tmp_path / "processes", tmp_path / "undisturbed")
    alone(copy("same"), 4, *whole)
    again = parameters(tmp_path / "same")[0]
    jax.tree.map(np.testing.assert_array_equal, again, expected)


LATE = """
import sys, time
from flaxmnist import data
from flaxmnist.cli import train
from flaxmnist.training import loop

def late(does):
    def wait(*given, **named):
        time.sleep(35)
        return does(*given, **named)
    return wait

if "--process_id=1" in sys.argv:
    data.load = late(data.load)
    loop.compile_training = late(loop.compile_training)
sys.exit(train.main())
"""


@pytest.mark.slow
def test_a_process_that_loads_and_compiles_for_long_does_not_end_the_others(tmp_path):
    # Gloo would give up after 30 s.
    said = run(tmp_path / "run", 2, 1, script=LATE)
    assert [code for code, *_ in said] == [0, 0], said


@pytest.mark.slow
def test_both_processes_skip_a_checkpoint_that_one_cannot_read(tmp_path):
    workdir = tmp_path / "run"
    flags = ["--config.mesh.fsdp=True"]  # Each process reads its own part only.
    said = run(workdir, 2, 1, *flags)
    assert [code for code, *_ in said] == [0, 0], said
    newest = workdir / "checkpoints" / "40"
    largest = max(
        newest.glob("arrays/ocdbt.process_1/d/*"), key=lambda path: path.stat().st_size
    )
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    (workdir / "summary.json").unlink()
    said = run(workdir, 2, 1, *flags)
    assert [code for code, *_ in said] == [0, 0], said
    assert "the checkpoint of step 40 in" in said[0][2]
    assert "resumes at step 30" in said[0][1]
    assert "damaged" not in said[1][2]
    assert len(list((workdir / "damaged-checkpoints").iterdir())) == 1


STALE = """
import sys
from flaxmnist.cli import train
from flaxmnist.rundir import folder

if "--process_id=1" in sys.argv:
    folder.saved_steps = lambda workdir: []
    folder.saved_summary = lambda workdir, step: None
sys.exit(train.main())
"""


@pytest.mark.slow
def test_process_0_decides_whether_a_run_is_new_or_finished(tmp_path):
    workdir, constant = tmp_path / "run", "--config.optimizer.schedule=constant"
    alone(workdir, 2, constant)
    for said in ("resumes at step 40 of 60", "is finished at step 60 of 60"):
        first, second = run(
            workdir, 2, 1, constant, "--config.num_steps=60", script=STALE
        )
        assert (first[0], second[0]) == (0, 0), (first, second)
        assert said in first[1]


ANY_DEVICES = """
import sys
from flaxmnist.cli import command, train

command._PER_PROCESS_FLAGS.add("num_cpu_devices")
sys.exit(train.main())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flag", "script", "reason"),
    [
        ("--config.seed={index}", None, "seed is 0 in process 0 and 1 in process 1"),
        ("--num_cpu_devices=1{index}", None, "--num_cpu_devices is 10 in process 0"),
        ("--num_cpu_devices=1{index}", ANY_DEVICES, "the number of devices is 10 in"),
    ],
)
def test_processes_that_differ_do_not_start(flag, script, reason, tmp_path):
    for code, _, error in run(tmp_path / "run", 2, 1, flag, script=script):
        assert code == 2
        assert reason in error
        assert len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_directory_that_is_not_shared_is_refused_in_every_process(tmp_path):
    flag = f"--workdir={tmp_path}/{{index}}"
    for index, (code, _, error) in enumerate(run(tmp_path, 2, 1, flag)):
        assert code == 2
        (line,) = error.splitlines()
        assert f"--workdir {tmp_path}/{index} is not the same directory" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flag", "reason"),
    [
        ("--config={tmp_path}/{index}.py", "1.py"),
        ("--workdir={tmp_path}/held", "is in use by"),
    ],
)
def test_a_failure_of_one_process_ends_every_process(flag, reason, tmp_path):
    (tmp_path / "0.py").write_text("from configs.mlp import get_config")
    flag = flag.replace("{tmp_path}", str(tmp_path))
    with folder.locked(tmp_path / "held"):
        said = run(tmp_path / "run", 2, 1, flag)
    for code, _, error in said:
        assert code == 2
        (line,) = error.splitlines()
        assert reason in line


TASK = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "no-such-host[1-2]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}


@pytest.fixture
def environment(monkeypatch):
    """Sets the environment variables of a cluster."""

    def make(variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return make


@pytest.mark.parametrize(
    "variables",
    [
        {},
        TASK | {"SLURM_NTASKS": "1"},
        # An interactive shell in a job of several tasks.
        TASK | {"SLURM_STEP_NUM_TASKS": "1"},
        # A batch script that starts Python without srun.
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_PROCID": "0"},
    ],
)
def test_an_environment_of_one_process(variables, environment):
    environment(variables)
    processes.start(None, None, None)
    assert not jax.distributed.is_initialized()


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        (TASK, "unknown host 'no-such-host1'"),
        (TASK | {"SLURM_PROCID": "2"}, "expected 0 to 1"),
        (TASK | {"SLURM_NTASKS": "two"}, "invalid literal for int"),
        ({k: TASK[k] for k in TASK if k != "SLURM_PROCID"}, "SLURM_PROCID not set"),
        (
            {"SLURM_STEP_NUM_TASKS": "2", "SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"},
            "SLURM_STEP_NODELIST, SLURM_PROCID, SLURM_LOCALID not set",
        ),
        (
            {"OMPI_MCA_orte_hnp_uri": "0.0;tcp://127.0.0.1:1"},
            "OMPI_COMM_WORLD_SIZE is not set",
        ),
        (
            {"OMPI_MCA_orte_hnp_uri": "junk", "OMPI_COMM_WORLD_SIZE": "2"},
            "JAX cannot detect the cluster",
        ),
    ],
)
def test_an_environment_that_cannot_be_used(variables, reason, environment, capsys):
    environment(variables)
    assert train.main([*FLAGS, "--workdir=x"]) == 2
    said = capsys.readouterr().err
    assert reason in said
    assert len(said.splitlines()) <= 2
    assert "--num_processes 1" in said  # This advice works:
    processes.start(None, 1, None)
    assert not jax.distributed.is_initialized()


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        *(
            ((where, "2", "1"), "expected HOST:PORT")
            for where in (
                "host",
                "host:",
                ":1234",
                "host:0",
                "host:65536",
                "host:12a",
                "http://host:1234",
                "a host:1234",
                "host:1234:1",
                "::1:1234",
                "",
            )
        ),
        (("no-such-host.invalid:1234", "2", "0"), "unknown host"),
        (("127.0.0.1:1234", "2", "2"), "--process_id 2: expected 0 to 1"),
        (("127.0.0.1:1234", "0", "0"), "--num_processes 0: expected 1 or more"),
    ],
)
def test_flags_that_cannot_be_used(flags, reason, capsys):
    names = ("--coordinator", "--num_processes", "--process_id")
    given = [f"{name}={value}" for name, value in zip(names, flags, strict=True)]
    assert train.main([*FLAGS, "--workdir=x", *given]) == 2
    said = capsys.readouterr().err
    assert reason in said
    assert len(said.splitlines()) == 1


def test_flags_that_require_each_other(capsys):
    assert train.main([*FLAGS, "--workdir=x", "--num_processes=2"]) == 2
    assert "expected all three or none" in capsys.readouterr().err


def test_a_coordinator_that_does_not_answer(monkeypatch, capsys):
    monkeypatch.setattr(processes, "JOIN_SECONDS", 0)
    where = f"127.0.0.1:{free_port()}"
    flags = [f"--coordinator={where}", "--num_processes=2", "--process_id=1"]
    assert train.main([*FLAGS, "--workdir=x", *flags]) == 2
    said = capsys.readouterr().err
    assert f"--coordinator {where}: timed out" in said
    assert len(said.splitlines()) == 1
    assert not Path("x").exists()


@pytest.mark.parametrize(
    ("reason", "lost"),
    [
        ("remote process exited or there was a network error", True),
        ("invalid usage (run with NCCL_DEBUG=WARN for details)", False),
    ],
)
def test_nccl_that_refuses_a_device_is_no_lost_process(reason, lost, monkeypatch):
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    error = jax.errors.JaxRuntimeError(f"INTERNAL: NCCL operation x failed: {reason}")
    assert processes.is_peer_failure(error) == lost
