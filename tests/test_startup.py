"""A program's start: what it imports, its signals and its standard streams."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import flaxmnist

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


def test_every_public_name_is_there_and_no_other():
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
# At moments that a test can tell apart: seconds after the first part of JAX is loaded.
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
            # A shell's background jobs ignore it, and so would this program.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        maps = Path("/proc", str(process.pid), "maps")
        while process.poll() is None and "jaxlib" not in maps.read_text():
            time.sleep(0.01)
        time.sleep(moment)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate()
        print(name, moment, process.returncode, repr(error))
        if process.returncode == 0 and name in (".doctor", ".export", ".report"):
            break  # It was finished.
        assert process.returncode in (-signal.SIGINT, 130)
        assert len(error.splitlines()) <= 1, error


@pytest.mark.parametrize("closed", [0, 1, 2])
def test_a_closed_standard_stream_is_no_file_of_ours(closed, tmp_path):
    said = tmp_path / "said"
    script = (
        "import os, sys; from flaxmnist import startup; startup.prepare(); "
        "print('out'); print('error', file=sys.stderr); sys.stdin.read(); "
        f"file = open({str(said)!r}, 'w'); assert file.fileno() > 2; "
        f"os.write({closed}, b'') if {closed} else None"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        stdin=subprocess.DEVNULL,
        preexec_fn=lambda: os.close(closed),
    )
    assert done.returncode == 0
    assert said.read_bytes() == b""
