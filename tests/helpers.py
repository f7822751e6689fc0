"""What several test modules share: tiny runs and data, records, environments."""

import gzip
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from flaxmnist import config as configs
from flaxmnist.data import idx
from flaxmnist.rundir import metrics_log
from flaxmnist.rundir.checkpoints import Checkpoints
from flaxmnist.training import resume
from flaxmnist.training.experiment import Experiment

try:
    from jax import enable_x64 as enable_x64
except ImportError:  # JAX before 0.8.
    from jax.experimental import enable_x64 as enable_x64

ROOT = Path(__file__).parents[1]


def find_python(version: str) -> str:
    """Returns an interpreter of a version such as 3.13; skips the test if none runs."""
    own = Path.home().glob(f".pyenv/versions/{version}.*/bin/python")
    for candidate in (sys.executable, f"python{version}", *map(str, own)):
        if path := shutil.which(candidate):
            program = "import sys; print('%d.%d' % sys.version_info[:2], end='')"
            # A shim of pyenv exists for versions that it does not run.
            done = subprocess.run([path, "-c", program], capture_output=True, text=True)
            if done.stdout == version:
                return path
    pytest.skip(f"needs Python {version} on PATH or in ~/.pyenv/versions")


def install(python: Path, *arguments: str | Path) -> None:
    """Installs packages with uv if it is there, else with the environment's pip."""
    command: list[str | Path] = [python, "-m", "pip", "install"]
    if importlib.util.find_spec("uv"):
        command = [sys.executable, "-m", "uv", "pip", "install", "--python", python]
    elif uv := shutil.which("uv"):
        command = [uv, "pip", "install", "--python", python]
    subprocess.run([*command, "--quiet", *arguments], check=True)


def freeze(python: Path) -> set[str]:
    """Returns the name and version of each installed package, as pip prints them."""
    command = [python, "-m", "pip", "freeze", "--all"]
    return set(subprocess.check_output(command, text=True).splitlines())


def new_environment(folder: Path, python: str | Path = sys.executable) -> Path:
    """Makes an environment with pip and returns its interpreter.

    Skips the test if no package index can be reached.
    """
    subprocess.run([python, "-m", "venv", folder], check=True)
    interpreter = folder / "bin/python"
    try:
        install(interpreter, "--upgrade", "pip")
    except subprocess.CalledProcessError:
        pytest.skip("needs a package index, such as pypi.org")
    return interpreter


def free_port():
    """Returns a port of this machine that no program listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def tiny_config(**changes):
    """A run of 40 steps of a small network, 20 an epoch, on one device."""
    options = {
        "num_steps": 40,
        "log_every": 10,
        "eval_every": 20,
        "checkpoint_every": 20,
        "model": {"name": "cnn", "features": (2, 4), "hidden": (16,)},
        "optimizer": {"learning_rate": 1e-2, "schedule": "exponential"},
        "data": {"source": "synthetic"},
        "mesh": {"data": 1},
        "report": False,
    }
    return configs.resolve(configs.make_config(**(options | changes)))


def batch_of(split, count, start=0):
    """A batch as a user would make it."""
    images = split.images[start : start + count, ..., None]
    return {
        "image": images,
        "label": split.labels[start : start + count].astype(np.int32),
    }


def lines(workdir):
    text = (Path(workdir) / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def timeless(records):
    drop = ("images_per_second",)
    return [{k: v for k, v in record.items() if k not in drop} for record in records]


def saved(config, workdir, step=None, data=None):
    """The arrays and the manifest of a checkpoint."""
    checkpoints = Checkpoints(Path(workdir) / "checkpoints", read_only=True)
    step = checkpoints.steps[-1] if step is None else step
    tree, manifest = checkpoints.restore(
        step, lambda manifest: resume.abstract_tree(Experiment.build(config, data))
    )
    tree["state"] = tree["state"].replace(key=jax.random.key_data(tree["state"].key))
    return jax.device_get(tree), manifest


def assert_identical(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def shown(workdir, split, name="loss"):
    """The steps and values that TensorBoard shows."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(workdir / "tensorboard" / split)).Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def stop_at(when, monkeypatch, number=signal.SIGINT):
    """Has a run signalled once it has written of a step and split."""
    write = metrics_log.MetricsWriter.write

    def write_and_signal(self, record):
        write(self, record)
        if (record.step, record.split) == when:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(metrics_log.MetricsWriter, "write", write_and_signal)


NAMES = [f"{stem}-idx{3 if 'images' in stem else 1}-ubyte" for stem in idx.STEMS]


def write_idx(folder, names=NAMES, counts=(24, 12), compress=False):
    """Writes four small files in MNIST's format; returns their arrays."""
    rng = np.random.default_rng(0)
    arrays = []
    for count in counts:
        arrays.append(rng.integers(0, 256, (count, 28, 28)).astype(np.uint8))
        arrays.append((np.arange(count) % 10).astype(np.uint8))
    save_idx(folder, arrays, names, compress)
    return arrays


def save_idx(folder, arrays, names=NAMES, compress=False):
    """Writes images, labels, test images and test labels in MNIST's format."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in zip(names, arrays, strict=True):
        content = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
        content += array.tobytes()
        if compress:
            content, name = gzip.compress(content), name + ".gz"
        (folder / name).write_bytes(content)


def write_prepared(base, classes=10, side=28):
    """Writes a set as TFDS prepares it, without TensorFlow."""
    from array_record.python.array_record_module import ArrayRecordWriter
    from PIL import Image
    from tensorflow_datasets.proto import tf_example_pb2

    folder = base / "mnist" / "3.0.1"
    folder.mkdir(parents=True)
    written = []
    for split, count in (("train", 24), ("test", 12)):
        images = np.random.default_rng(count).integers(0, 256, (count, side, side))
        written.append(images.astype(np.uint8))
        writer = ArrayRecordWriter(
            str(folder / f"mnist-{split}.array_record-00000-of-00001"), "group_size:1"
        )
        for index, image in enumerate(written[-1]):
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "PNG")
            example = tf_example_pb2.Example()
            feature = example.features.feature
            feature["image"].bytes_list.value.append(buffer.getvalue())
            feature["label"].int64_list.value.append(index % classes)
            writer.write(example.SerializeToString())
        writer.close()
    info = {"name": "mnist", "version": "3.0.1", "fileFormat": "array_record"}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return written


def has_convolution(step, *arguments, platform="cpu"):
    """Returns whether a jitted step for a platform contains XLA's convolution."""
    lowered = step.trace(*arguments).lower(lowering_platforms=(platform,))
    return "stablehlo.convolution" in lowered.as_text()


def exchanges_examples(program):
    """Returns whether devices exchange more than sums, by a compiled program's text."""
    return bool(re.search("all-gather|all-to-all|permute", program))


# Kills are drawn from the seed; so many are made, at least.
SEED = int(os.environ.get("FLAXMNIST_FAULTS_SEED", "0"))
