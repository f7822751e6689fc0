"""Eight virtual CPU devices, strict JAX, checked shapes; tiny data and shared runs."""

import atexit
import importlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

# Programs that one test compiled serve the others, in every process of this session.
PROGRAMS = tempfile.TemporaryDirectory(prefix="flaxmnist-programs-")
atexit.register(PROGRAMS.cleanup)  # Otherwise Python warns of it at exit.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", PROGRAMS.name)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
# Compiling takes most of the tests' time, and half as long like this; set it to 0 for
# programs as users run them.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

# A background job of a shell inherits an ignored SIGINT, and so would its children.
signal.signal(signal.SIGINT, signal.default_int_handler)

import jax
from jaxtyping import install_import_hook

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
CHECKED = (
    "gathering",
    "layers",
    "models",
    "objective",
    "ops",
    "parts",
    "patches",
    "pooled",
    "pooling",
    "steps",
    "winograd",
)
with install_import_hook(
    [f"flaxmnist.core.{module}" for module in CHECKED], "beartype.beartype"
):
    for module in CHECKED:
        importlib.import_module(f"flaxmnist.core.{module}")

import optax
import pytest
from helpers import ROOT, tiny_config

from flaxmnist import data
from flaxmnist.core import models, ops, sharding, state
from flaxmnist.data import download
from flaxmnist.rundir.varying import vary
from flaxmnist.runtime import files
from flaxmnist.training import loop
from flaxmnist.training import population as training

FULL_MNIST = os.environ.get("FLAXMNIST_DATA_DIR")


def use_new_caches(monkeypatch, folder):
    monkeypatch.delenv("FLAXMNIST_DATA_DIR", raising=False)
    monkeypatch.setenv("FLAXMNIST_CACHE_DIR", str(folder / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(folder / "tfds"))
    # Data come from this machine, also where the internet can be reached.
    monkeypatch.setattr(
        download,
        "reachable",
        lambda url, real=download.reachable: (
            url.startswith("http://127.0.0.1") and real(url)
        ),
    )
    # A command in this process would enable it for all later tests.
    monkeypatch.setattr(files, "cache_enabled", False)


@pytest.fixture(scope="session", autouse=True)
def _caches_of_shared_fixtures(tmp_path_factory):
    """No fixture reads or writes the user's caches, or finds data by accident."""
    with pytest.MonkeyPatch.context() as patch:
        use_new_caches(patch, tmp_path_factory.mktemp("shared"))
        yield


@pytest.fixture(autouse=True)
def _own_caches(tmp_path_factory, monkeypatch):
    """Nor does a test, and none depends on the cache of another."""
    use_new_caches(monkeypatch, tmp_path_factory.mktemp("own"))


@pytest.fixture
def new_traces():
    """Neither this test nor a later one finds convolutions that the other traced."""
    ops._fast_conv.clear_cache()
    yield
    ops._fast_conv.clear_cache()


@pytest.fixture(scope="session")
def mnist_dir():
    """The folder of the original MNIST files."""
    if not FULL_MNIST:
        pytest.skip("needs the full MNIST: set FLAXMNIST_DATA_DIR to its four files")
    return Path(FULL_MNIST).resolve()


@pytest.fixture(scope="session")
def synthetic():
    return data.load("synthetic", "synthetic")


@pytest.fixture(scope="session")
def mesh():
    return sharding.make_mesh(1)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """A finished run: its folder and its summary. Copy it before changing it."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    return workdir, loop.train_and_evaluate(tiny_config(), workdir)


@pytest.fixture(scope="session")
def trained_population(tmp_path_factory):
    """A population of the seeds 0 and 1: its folder and its summary. Copy it."""
    workdir = tmp_path_factory.mktemp("population") / "p"
    config = tiny_config(report=True)
    members = vary(config, [0, 1])
    return workdir, training.train_members(config, workdir, members)


@pytest.fixture
def make_state(mesh):
    """Makes a small network's state."""
    tx = optax.adam(1e-2)

    def make(model=None, seed=0, mesh=mesh, tx=tx):
        model = model or models.CNN(features=(2, 4), hidden=(16,))
        return state.create_state(model, tx, seed, sharding.replicated(mesh))

    return make


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """The wheel that this checkout builds."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder],
        cwd=ROOT,
        check=True,
    )
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def browser():
    """Chromium without a screen."""
    webdriver = pytest.importorskip("selenium.webdriver")
    paths = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in paths:
        pytest.skip("needs a browser: install the packages chromium, chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = paths[0]
    for flag in (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "disable-dev-shm-usage",
        # Nothing beyond this machine can be reached, as without a network.
        "disable-background-networking",
        "host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(paths[1]))
    yield driver
    driver.quit()
