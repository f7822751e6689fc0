"""A run is opened where it is now, with the data that it can find."""

import json
import shutil

import jax
import numpy as np
import pytest
from helpers import tiny_config, write_idx

from flaxmnist import config as configs
from flaxmnist.errors import UserError
from flaxmnist.inference.places import DataPlaces
from flaxmnist.inference.saved_run import open_run
from flaxmnist.runtime import processes
from flaxmnist.training import loop

PICTURE = np.zeros((28, 28), np.uint8)
PICTURE[4:24, 13:16] = 255


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A directory with a run in ``run``, trained on the data in ``mnist``."""
    home = tmp_path_factory.mktemp("home")
    write_idx(home / "mnist")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        loop.train_and_evaluate(
            tiny_config(
                num_steps=5,
                batch_size=4,
                model={"name": "softmax"},
                data={"source": "idx", "dir": "mnist"},
            ),
            "run",
        )
    return home


@pytest.fixture
def moved(home, tmp_path):
    """A copy of that directory, as on another machine: the former place is gone."""
    hidden = home.rename(home.with_name("gone"))
    yield shutil.copytree(hidden, tmp_path / "moved")
    hidden.rename(home)


def test_a_run_may_be_evaluated_from_any_directory(home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved = open_run(home / "run")
    config = json.loads((home / "run" / "config.json").read_text())
    assert config["data"]["dir"] == str(home / "mnist")
    assert saved.manifest.config["data"]["dir"] == str(home / "mnist")
    assert saved.evaluate() == saved.summary.test
    assert repr(saved) == (
        f"SavedRun('{home}/run', softmax, 7,850 parameters, step {saved.step})"
    )


def test_an_opened_run_outlasts_a_change_of_the_current_directory(
    home, tmp_path, monkeypatch
):
    monkeypatch.chdir(home)
    saved = open_run("run")
    monkeypatch.chdir(tmp_path)
    assert saved.workdir == home / "run"
    assert saved.summary is not None
    assert saved.calibration == open_run(home / "run").calibration


def test_one_of_several_processes_alone_opens_no_run(home, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(processes, "all_processes_max", pytest.fail)
    with pytest.raises(UserError, match="opened by one of several processes alone"):
        open_run(home / "run")


def test_a_moved_run_predicts_and_exports_without_data(moved, capsys):
    saved = open_run(moved / "run")
    assert jax.tree.leaves(saved.state.opt_state) == []
    (prediction,) = saved.predict(PICTURE)
    assert prediction.probabilities.sum() == pytest.approx(1)
    assert "dataset" not in vars(saved)  # Nothing was loaded.
    card = (saved.export("numpy") / "README.md").read_text()
    assert "on 1,000 generated images" in card
    assert f"{saved.summary.test.accuracy:.2%}" in card
    said = capsys.readouterr().out
    assert "over 1,000 generated images" in said
    assert "--config.data.dir=DIR" in said
    advice = r"does not exist\nIf the data have moved.* --config.data.dir=DIR$"
    for needs_data in (saved.evaluate, saved.predict_split, saved.report):
        with pytest.raises(UserError, match=advice):
            needs_data()


def test_the_data_of_a_moved_run_are_found(moved, monkeypatch, capsys):
    changes = {"data.dir": str(moved / "mnist")}
    told = open_run(moved / "run", overrides=changes)
    test = told.summary.test
    assert told.evaluate() == test
    monkeypatch.setenv("FLAXMNIST_DATA_DIR", str(moved / "mnist"))
    saved = open_run(moved / "run")
    assert saved.evaluate("test") == test
    saved.export("numpy")
    assert "over 12 test images" in capsys.readouterr().out
    # As of files of every other form.
    given = configs.override(saved.config, {"data.source": "csv", "data.dir": "/x"})
    places = DataPlaces.of(given, given, saved.manifest)
    assert places.directories == (None, "/x")
    # What is told is used, and nothing else.
    changes = {"data.dir": str(moved / "elsewhere")}
    with pytest.raises(UserError, match=r"elsewhere' does not exist$"):
        open_run(moved / "run", overrides=changes).export("numpy")


def test_other_data_are_refused_and_the_recorded_place_is_tried(
    home, tmp_path, monkeypatch
):
    write_idx(tmp_path / "other", counts=(36, 12))
    monkeypatch.setenv("FLAXMNIST_DATA_DIR", str(tmp_path / "other"))
    saved = open_run(home / "run")
    assert saved.evaluate() == saved.summary.test
    changes = [("data.dir", str(tmp_path / "other"))]
    with pytest.raises(UserError, match="with other examples in train, validation"):
        open_run(home / "run", overrides=changes).evaluate()


def test_what_is_not_there_is_named(home, tmp_path):
    with pytest.raises(UserError, match=r"contains no run: config.json is missing"):
        open_run(tmp_path)
    for overrides in (["data.dir=/x"], "data.dir=/x", [1], 1):
        with pytest.raises(
            UserError, match=r"overrides=.*: expected options with their"
        ):
            open_run(home / "run", overrides=overrides)
    with pytest.raises(UserError, match=r"step='1': expected a whole number"):
        open_run(home / "run", step="1")
    with pytest.raises(UserError, match="checkpoint 3 does not exist in"):
        open_run(home / "run", 3)
    with pytest.raises(UserError, match="split='tset' is unknown; did you mean 'test'"):
        open_run(home / "run").evaluate("tset")
    with pytest.raises(UserError, match="format='onx' is unknown; did you mean 'onnx'"):
        open_run(home / "run").export("onx")


def test_a_removed_config_json_is_replaced_by_the_given_configuration(
    finished_run, tmp_path
):
    workdir = shutil.copytree(finished_run[0], tmp_path / "run")
    content = (workdir / "config.json").read_bytes()
    (workdir / "config.json").unlink()
    with pytest.raises(UserError, match=r"contains no run: config.json is missing"):
        open_run(workdir)
    run = open_run(workdir, config=tiny_config())
    assert run.evaluate() == finished_run[1].test
    with pytest.raises(UserError, match=r"different configuration.*\nseed: 0 in the"):
        open_run(workdir, config=tiny_config(seed=1))
    loop.train_and_evaluate(tiny_config(), workdir)
    assert (workdir / "config.json").read_bytes() == content
