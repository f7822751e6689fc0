"""The search for wrong labels: predictions of examples that were held out."""

import dataclasses
import functools
import itertools
import re

import numpy as np
import pytest
from helpers import stop_at, tiny_config

import flaxmnist
from flaxmnist import config as configs
from flaxmnist.cli import labels as command
from flaxmnist.data import Split, draw
from flaxmnist.errors import StoppedError, UserError
from flaxmnist.inference import label_errors

CONFIG = tiny_config(
    num_steps=80, model={"name": "mlp", "hidden": (32,), "dropout_rate": 0.0}
)
find = functools.partial(flaxmnist.find_label_errors, CONFIG)


@pytest.fixture(scope="module")
def flipped(synthetic):
    """Synthetic data with a twentieth of the training labels wrong; their indices."""
    train = synthetic.train
    rng = np.random.default_rng(0)
    wrong = rng.choice(len(train), len(train) // 20, replace=False)
    labels = train.labels.copy()
    labels[wrong] = (labels[wrong] + rng.integers(1, 10, len(wrong))) % 10
    data = dataclasses.replace(synthetic, train=Split(train.images, labels))
    return data, set(wrong.tolist())


@pytest.fixture(scope="module")
def searched(flipped, tmp_path_factory):
    """A finished search: its directory, its result, and the data of its runs."""
    workdir, parts = tmp_path_factory.mktemp("searched") / "labels", []
    train = label_errors.train_and_evaluate

    def record(*args, data, **kwargs):
        parts.append(data)
        return train(*args, data=data, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(label_errors, "train_and_evaluate", record)
        found = find(workdir, folds=2, data=flipped[0])
    return workdir, found, parts


def test_wrong_labels_are_found(searched, flipped, synthetic):
    workdir, found, _ = searched
    data, wrong = flipped
    hits = [one for one in found if one.index in wrong]
    assert len(hits) > 0.8 * len(wrong)
    assert len(hits) > 0.95 * len(found)
    right = synthetic.train.labels
    assert np.mean([one.suggestion == str(right[one.index]) for one in hits]) > 0.95
    assert all(one.label == str(data.train.labels[one.index]) for one in found)
    assert (
        len((workdir / "label_errors.csv").read_text().splitlines()) == len(found) + 1
    )
    assert (
        f"<b>{len(found):,}</b> suspect labels" in (workdir / "report.html").read_text()
    )


def test_each_example_is_held_out_once_by_a_run_that_was_not_trained_on_it(
    searched, flipped
):
    _, _, parts = searched
    whole = [image.tobytes() for image in flipped[0].train.images]
    held_out = [[image.tobytes() for image in part.test.images] for part in parts]
    assert sorted(itertools.chain(*held_out)) == sorted(whole)
    for part, test in zip(parts, held_out, strict=True):
        train = {image.tobytes() for image in part.train.images}
        assert train == {*whole} - {*test}
        assert part.fingerprints["validation"] == flipped[0].fingerprints["validation"]
    labels = np.repeat([0, 1, 3], (70, 25, 5))
    found = draw.folds(labels, 5, seed=1)
    for label, count in ((0, 14), (1, 5), (3, 1)):
        assert np.bincount(found[labels == label]).tolist() == [count] * 5
    np.testing.assert_array_equal(found, draw.folds(labels, 5, seed=1))
    assert (found != draw.folds(labels, 5, seed=2)).any()


def test_a_stopped_search_goes_on_and_a_finished_one_trains_nothing(
    searched, flipped, tmp_path, monkeypatch, capsys
):
    undisturbed, found, _ = searched
    workdir, data = tmp_path / "labels", flipped[0]
    with monkeypatch.context() as patch:
        stop_at((10, "train"), patch)
        with pytest.raises(StoppedError, match=r"^stopped; .*--workdir .* continues$"):
            find(workdir, folds=2, data=data)
    assert [path.name for path in workdir.glob("fold*")] == ["fold-1-of-2"]
    for said in ("resumes at step 20 of 80", "is finished at step 80 of 80"):
        capsys.readouterr()
        again = find(workdir, folds=2, data=data)
        assert again == found
        assert f"fold-1-of-2 {said}" in capsys.readouterr().out
    for name in ("label_errors.csv", "report.html"):
        assert (workdir / name).exists()
    table = (workdir / "label_errors.csv").read_bytes()
    assert table == (undisturbed / "label_errors.csv").read_bytes()


def test_a_search_that_diverges_names_what_can_be_changed(synthetic, tmp_path):
    config = configs.override(CONFIG, {"optimizer.learning_rate": 1e30})
    with pytest.raises(UserError, match=r"^fold-1-of-2: the loss is not fin") as error:
        flaxmnist.find_label_errors(config, tmp_path, folds=2, data=synthetic)
    assert "\nUse another --workdir, with a smaller opt" in str(error.value)
    assert "--allow_change" not in str(error.value)


def test_what_cannot_be_searched_is_refused_and_nothing_is_written(
    searched, synthetic, tmp_path, capsys
):
    def refused(said, workdir=tmp_path / "new", **changes):
        before = sorted(workdir.rglob("*"))
        with pytest.raises(UserError, match=said):
            flaxmnist.find_label_errors(
                tiny_config(), workdir, data=synthetic, **changes
            )
        assert sorted(workdir.rglob("*")) == before

    refused("^folds=1: expected a whole number, 2 or more$", folds=1)
    least = np.bincount(synthetic.train.labels)
    refused(
        f"folds=300: expected at most {least.min()}, the training examples of class "
        f"'{least.argmin()}'",
        folds=300,
    )
    refused("batch_size=1200: expected at most 1,000", folds=2, batch_size=1200)
    for name in ("config.json", "population.json"):
        other = tmp_path / name.partition(".")[0]
        other.mkdir()
        (other / name).write_text("{}")
        refused(f"contains {name}, which is not of this search", other)
    refused("contains fold-1-of-2, which is not of this search", searched[0], folds=3)
    refused("contains a search with other options; use the same", searched[0], folds=2)
    with pytest.raises(UserError, match="contains a search for wrong labels; to resum"):
        flaxmnist.train_and_evaluate(CONFIG, searched[0], data=synthetic)
    assert not (tmp_path / "new").exists()
    assert command.main(["--config=mlp:smoke", "--folds=1"]) == 2
    assert "folds=1: expected a whole number" in capsys.readouterr().err


def test_the_command_searches_and_trains_each_fold_once(tmp_path, capsys):
    options = ("num_steps=4", "mesh.data=1", "report=False")
    flags = [f"--config.{option}" for option in options]
    flags += ["--config=softmax:smoke", "--folds=2", f"--workdir={tmp_path}"]
    for finished in (0, 2):
        assert command.main(flags) == 0
        out = capsys.readouterr().out
        (count,) = re.findall(r"^([\d,]+) of 2,000 training labels are susp", out, re.M)
        _, *rows = (tmp_path / "label_errors.csv").read_text().splitlines()
        assert f"{len(rows):,}" == count
        assert out.count(" is finished at step 4 of 4") == finished
