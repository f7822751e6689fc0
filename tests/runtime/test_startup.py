"""The start of a program: imports, signals and standard streams."""

import ast
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import pytest

import flaxmnist
from flaxmnist.cli import exits
from flaxmnist.runtime import devices, startup

LIGHT = """
import signal, sys

for name in ("array_record", "matplotlib", "mlxtend", "orbax", "skimage",
             "tensorboard", "tensorflow_datasets"):
    sys.modules[name] = None  # Importing it fails.
import flaxmnist

assert not {"jax", "numpy", "rich"} & set(sys.modules)
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
assert flaxmnist.__version__

import numpy, optax
model = flaxmnist.SoftmaxRegression()
state = flaxmnist.create_state(model, optax.sgd(0.1))
batch = {"image": numpy.zeros((2, 28, 28), "uint8"), "label": numpy.array([3, 8])}
state, metrics = flaxmnist.train_step(state, batch)
assert metrics.compute()["count"] == 2
"""


def test_the_library_imports_late_and_its_steps_need_few_packages():
    subprocess.run([sys.executable, "-c", LIGHT], check=True)


COLLECTS = """
import gc, sys
from flaxmnist.runtime import startup

startup.prepare()
imported = not gc.isenabled()
from flaxmnist.cli import exits
started = exits.exit_code(lambda _: gc.isenabled() and gc.get_freeze_count() > 100_000)
sys.exit(0 if imported and started else 1)
"""


def test_garbage_collection_starts_after_the_imports_and_skips_them():
    subprocess.run([sys.executable, "-c", COLLECTS], check=True)


# Imports each module first in a process, after the packages that all of them need.
FIRST = """
import os, sys
import cv2, flax.linen, jax, optax, orbax.checkpoint

for name in sys.argv[1:]:
    if (child := os.fork()) == 0:
        __import__(name)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit(f"{name} cannot be imported first")
"""


def test_every_public_name_may_be_the_first_to_be_used():
    stub = Path(flaxmnist.__file__).with_suffix(".pyi").read_text("utf-8")
    names = {
        f"flaxmnist.{found[1]}"
        for found in re.finditer(r"^from \.([\w.]+)", stub, re.M)
    } | {f"flaxmnist.cli.{name}" for name in ("train", "eval", "predict", "report")}
    assert "flaxmnist.inference.train" in names
    command = [sys.executable, "-W", "ignore", "-c", FIRST, *sorted(names)]
    subprocess.run(command, check=True)


def test_exactly_the_public_names_exist():
    for name in flaxmnist.__all__:
        found = getattr(flaxmnist, name)
        assert getattr(found, "__name__", "").rpartition(".")[2] in (name, "")
    assert {"train_step", "load", "predict_images", "data"} <= set(dir(flaxmnist))
    with pytest.raises(AttributeError, match="train_stepp"):
        _ = flaxmnist.train_stepp


COMMANDS = {
    "flaxmnist": [str(Path(sys.executable).with_name("flaxmnist"))],
    **{
        name: [sys.executable, "-m", f"flaxmnist{name}"]
        for name in ("", ".main", ".demo", ".doctor", ".export", ".predict", ".report")
    },
}
# Exit codes of finished commands. `doctor` may find a problem, such as no network.
FINISHED = {".doctor": (0, 1), ".export": (0,), ".report": (0,)}
# Seconds after the first part of JAX is loaded, for moments that a test can tell apart.
MOMENTS = [0.15 * number for number in range(14)]


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_ctrl_c_during_the_start_ends_it_at_once(name, finished_run, tmp_path):
    flags = [f"--workdir={finished_run[0]}"]
    if name in ("flaxmnist", "", ".main"):
        flags = ["--config=mlp:smoke", "--config.num_epochs=9999"]
        flags += [f"--workdir={tmp_path}"]
    elif name == ".doctor":
        flags = []
    elif name == ".export":
        flags += ["--format=numpy"]
    elif name == ".predict":
        flags += ["-"]  # Reads the standard input, which does not end.
    for moment in MOMENTS if name in ("flaxmnist", ".main") else MOMENTS[::5]:
        process = subprocess.Popen(
            [*COMMANDS[name], *flags],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        maps = Path("/proc", str(process.pid), "maps")
        while process.poll() is None and "jaxlib" not in maps.read_text(
            encoding="utf-8"
        ):
            time.sleep(0.01)
        time.sleep(moment)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate()
        print(name, moment, process.returncode, repr(error))
        if process.returncode in FINISHED.get(name, ()):
            break
        assert process.returncode in (-signal.SIGINT, 130)
        assert len(error.splitlines()) <= 1, error


def test_the_check_of_threads_ends_its_threads():
    before = set(threading.enumerate())
    startup._check_threads()
    assert not set(threading.enumerate()) - before


def test_a_closed_standard_stream_is_not_reused_for_a_file(tmp_path):
    said = tmp_path / "said"
    script = (
        "import os, sys; from flaxmnist.runtime import startup; startup.prepare(); "
        "print('out'); "
        f"file = open({str(said)!r}, 'w'); assert file.fileno() > 2; os.write(1, b'x')"
    )
    without_output = ["sh", "-c", 'exec "$@" >&-', "sh"]
    done = subprocess.run(
        [*without_output, sys.executable, "-c", script], stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0
    assert said.read_bytes() == b""


def test_a_home_that_cannot_be_written_is_not_reported_by_matplotlib(tmp_path):
    script = (
        "from flaxmnist.runtime import startup; startup.prepare(); "
        "import matplotlib; print(matplotlib.get_configdir())"
    )
    environment = os.environ | {"HOME": "/dev/null", "TMPDIR": str(tmp_path)}
    environment = {
        k: v for k, v in environment.items() if k[:4] not in ("XDG_", "MPLC")
    }
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment
    )
    assert done.stdout.startswith(str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")


def names_no_encoding(call):
    """Returns whether a call opens a text file in the encoding of the locale."""
    name = getattr(call.func, "attr", getattr(call.func, "id", None))
    if any(word.arg == "encoding" for word in call.keywords):
        return False
    if name in ("read_text", "write_text"):
        return True
    owner = getattr(getattr(call.func, "value", None), "id", None)
    if name != "open" or owner in ("os", "Image", "archive"):
        return False
    values = [getattr(arg, "value", "") for arg in call.args]
    return not any("b" in value for value in values[-1:] if isinstance(value, str))


def test_every_text_file_is_utf_8_in_any_locale():
    for path in sorted(Path(flaxmnist.__file__).parent.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            assert not isinstance(node, ast.Call) or not names_no_encoding(node), (
                f"{path}, line {node.lineno}"
            )


def started(*flags, before="", redirect="", **environment):
    """Runs a short training by a shell; returns the exit code and both outputs."""
    command = [*COMMANDS["flaxmnist"], "--config=softmax:smoke", *flags]
    command += ["--config.num_steps=2", "--config.report=False"]
    done = subprocess.run(
        ["sh", "-c", f'{before}"$@" {redirect}', "sh", *command],
        capture_output=True,
        env=os.environ | environment,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.mark.slow
def test_closed_and_full_streams(tmp_path):
    for number, redirect in enumerate(
        (">&-", "2>&-", "<&-", ">&- 2>&-", "2>/dev/full")
    ):
        run = tmp_path / str(number)
        assert started(f"--workdir={run}", redirect=redirect)[0] == 0, redirect
        assert (run / "summary.json").exists()
    for flags in ([f"--workdir={tmp_path}/full"], ["--help"]):
        code, _, error = started(*flags, redirect=">/dev/full")
        assert code == 2
        assert "standard output cannot be written (No space" in error
        assert error.count("\n") == 1
    assert started("--config=nope", redirect="2>/dev/full")[0] == 2
    code, out, error = started(f"--workdir={tmp_path}/head", redirect="| head -1")
    assert (code, out.count("\n"), error) == (0, 1, "")


@pytest.mark.slow
def test_a_locale_without_utf_8_and_an_unknown_backend(tmp_path):
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    ascii_only["MPLBACKEND"] = "nope"
    code, _, error = started(f"--workdir={tmp_path}/run", **ascii_only)
    assert (code, error) == (0, "")
    for name, *flags in ((".report",), (".export", "--format=numpy")):
        command = [*COMMANDS[name], f"--workdir={tmp_path}/run", *flags]
        subprocess.run(command, check=True, env=os.environ | ascii_only)
    card = tmp_path / "run" / "export" / "numpy" / "README.md"
    assert "28×28" in card.read_text(encoding="utf-8")


def test_bad_flags_of_xla_are_found_before_it_ends_the_process(monkeypatch):
    known = "--xla_force_host_platform_device_count=2 --xla_cpu_enable_fast_math=false"
    monkeypatch.setenv("XLA_FLAGS", known)
    startup._check_xla_flags()
    for flags, said in (
        ("--xla_cpu_enable_slow_math", "Unknown flag .*: --xla_cpu_enable_slow_math$"),
        ("--xla_cpu_enable_fast_math=maybe", "value maybe for .*enable_fast_math.$"),
    ):
        monkeypatch.setenv("XLA_FLAGS", f"{known} {flags}")
        with pytest.raises(ValueError, match=f"^XLA_FLAGS: .*{said}"):
            startup._check_xla_flags()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("JAX_PLATFORMS", "nope", r"JAX_PLATFORMS='nope': jax finds no devices \("),
        ("JAX_ENABLE_X64", "maybe", r"jax cannot start \(ValueError: .*X64"),
        ("JAX_NUM_CPU_DEVICES", "x", r"jax cannot start \(ValueError"),
        (
            "XLA_FLAGS",
            "--xla_nope=1",
            r"jax cannot start \(.*XLA_FLAGS: Unknown flag.*: --xla_nope=1\);",
        ),
    ],
)
def test_environment_variables(name, value, said, tmp_path):
    code, _, error = started(f"--workdir={tmp_path}/run", **{name: value})
    assert (code, error.count("\n")) == (2, 1)
    assert re.match(f"flaxmnist: {said}", error), error


@pytest.mark.slow
def test_too_little_memory(tmp_path):
    flags = [f"--workdir={tmp_path}/run"]
    code, _, error = started(*flags, before="ulimit -v 900000; ")
    assert (code, error.count("\n")) == (2, 1)
    assert "limits of memory and threads" in error


def test_an_amd_gpu_is_found(monkeypatch):
    """Without NVIDIA's, JAX starts with the CPU alone for "cuda,cpu", and stays so."""
    chosen, started = [], []

    def found():
        if not started:
            started.append("cpu" if chosen[-1].startswith("cuda") else "gpu")
        return [types.SimpleNamespace(platform=started[0])]

    config = types.SimpleNamespace(update=lambda name, value: chosen.append(value))
    jax = types.SimpleNamespace(config=config, devices=found)
    monkeypatch.setattr(devices, "jax", jax)
    devices._choose_platform("gpu")
    assert chosen == ["rocm,cpu"]


def test_jax_may_tell_of_a_gpu_that_it_cannot_use():
    shown = {}

    def run(_):
        for name in ("jax._src.xla_bridge", "jax._src.compiler"):
            shown[name] = logging.getLogger(name).isEnabledFor(logging.WARNING)

    assert exits.exit_code(run, []) == 0
    assert shown == {"jax._src.xla_bridge": True, "jax._src.compiler": False}
