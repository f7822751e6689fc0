"""Paths from users: accepted, refused, and printed safely."""

import os

import pytest
from helpers import tiny_config

from flaxmnist import config as configs
from flaxmnist.cli import exits, export, predict, report, train
from flaxmnist.data import download
from flaxmnist.errors import UserError, printable
from flaxmnist.inference.predict import predict_images
from flaxmnist.inference.saved_run import open_run
from flaxmnist.paths import path_of
from flaxmnist.report.plots import curves
from flaxmnist.runtime import devices
from flaxmnist.runtime.console import Console
from flaxmnist.training import loop

REFUSED = {
    "a\\b": "contains a backslash",
    "s3://bucket/run": "is a URL",
    "gs:/bucket/run": "is a URL",  # As `Path` writes it.
    "a\0b": "contains a control character",
    "a\nb": "contains a control character",
    "a\x1b[2Jb": "contains a control character",
    "a\udcffb": "bytes that are not UTF-8",
    "~nosuchuser/run": "has no home directory",
    "a/" + "x" * 256: "is too long",
    "abc/" * 1000: "is too long",
    "": "expected a path",
}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert list(tmp_path.iterdir()) == []  # Nothing was created.


@pytest.mark.parametrize("path", REFUSED)
def test_an_unusable_path_is_refused_before_anything_is_written(path, capsys):
    said = REFUSED[path]
    for call in (
        lambda: loop.train_and_evaluate(tiny_config(), path),
        lambda: open_run(path),
        lambda: predict_images([], path),
        lambda: configs.make_config(num_steps=1, init_from=path),
        lambda: configs.make_config(num_steps=1, data={"dir": path}),
    ):
        with pytest.raises(UserError, match=f"{said}|: expected a directory"):
            call()
    for program, flags in (
        (train, ["--config=mlp:smoke", f"--workdir={path}"]),
        (report, ["--workdir=x", "--compare", path]),
        (export, ["--format=numpy", f"--workdir={path}"]),
        (predict, ["--workdir=x", f"--save_preprocessed={path}", "x.png"]),
    ):
        assert program.main(flags) == 2
        error = capsys.readouterr().err
        assert said in error
        assert printable(error, keep="\n") == error
        assert len(error.splitlines()) == 1


def test_a_tilde_is_the_home_directory_everywhere(finished_run, tmp_path, monkeypatch):
    run, _ = finished_run
    monkeypatch.setenv("HOME", str(run.parent))
    assert path_of("~/run") == run
    open_run("~/run")
    config = configs.make_config(num_steps=1, init_from="~/run", data={"dir": "~"})
    assert (config.init_from, config.data.dir) == (str(run), str(run.parent))


def test_a_removed_current_directory_is_named(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(UserError, match="--workdir='run' is relative, but the current"):
        path_of("run")
    assert path_of("/run").is_absolute()


def test_a_user_without_a_home_directory_trains_without_caches(monkeypatch, capsys):
    def no_home(path):
        return path

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("FLAXMNIST_CACHE_DIR")
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setattr(os.path, "expanduser", no_home)
    with pytest.raises(UserError, match="no home directory; set FLAXMNIST_CACHE_DIR"):
        download.cache_dir()
    devices._keep_programs()
    assert download.cached("mnist") is None
    assert train.main(["--config=mlp:smoke", "--workdir=~/run"]) == 2
    assert "--workdir='~/run' has no home directory" in capsys.readouterr().err


def test_names_cannot_send_control_sequences_to_the_terminal(capsys):
    name = "a\x1b[31m\rb\u202e\n"
    Console().line(name)
    Console().warn(name)

    def run(argv):
        raise UserError(name)

    assert exits.exit_code(run, []) == 2
    out, error = capsys.readouterr()
    assert out == "a\\x1b[31m\\rb\\u202e\n\n"
    assert "\x1b" not in error
    assert "flaxmnist: a\\x1b[31m\\rb\\u202e" in error
    assert printable("Größe 数字\u3000１.png") == "Größe 数字\u3000１.png"


@pytest.mark.parametrize("name", [r"$\foo$", "$HOME_$x", "_hidden", "a\nb"])
def test_the_curves_accept_any_name_of_a_run(name):
    rows = [
        {"step": step, "split": split, "loss": 1.0, "accuracy": 0.5}
        for step in (1, 2)
        for split in ("train", "validation")
    ]
    figure = curves({name: [rows]})
    figure.canvas.draw()
    labels = [text.get_text() for text in figure.axes[1].get_legend().get_texts()]
    assert len(labels) == 2
    assert printable(name) in labels[0]
