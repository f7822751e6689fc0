"""Runs that continue with another batch size, optimizer, loss or augmentation."""

import dataclasses
import functools
import json
import shutil

import jax
import numpy as np
import pytest
from helpers import assert_identical, lines, saved, timeless, tiny_config

from flaxmnist import config as configs
from flaxmnist.config import override
from flaxmnist.core import sharding
from flaxmnist.core.steps import train_step
from flaxmnist.data import Dataset, DeviceFeed, HostFeed, Split, epoch_order
from flaxmnist.data.order import START, Epochs, Order, Origin
from flaxmnist.errors import UserError
from flaxmnist.inference.saved_run import open_run
from flaxmnist.rundir import folder as workdirs
from flaxmnist.rundir.checkpoints import Checkpoints
from flaxmnist.training import loop, resume
from flaxmnist.training.experiment import Experiment


def reference(count, seed, parts):
    """Returns the examples of each step: `parts` are batch sizes and numbers of steps.

    An epoch ends when fewer examples are left than the present batch size.
    """
    epoch, order, batches = -1, [], []
    for size, steps in parts:
        for _ in range(steps):
            if len(order) < size:
                epoch += 1
                order = epoch_order(seed, epoch, count).tolist()
            batches.append(order[:size])
            order = order[size:]
        if len(order) < size:
            order = []
    return batches


def test_each_step_takes_the_next_examples_of_the_epoch(mesh):
    count, seed = 23, 4
    rng = np.random.default_rng(0)
    for _ in range(50):
        parts = rng.integers(1, (count, 12), (4, 2)).tolist()
        found, origin = [], START
        for size, steps in parts:
            order = Order(count, size, mesh, seed, origin)
            for _ in range(steps):
                epoch, row = order.epochs.locate(len(found))
                found.append(order.epoch(epoch)[row].tolist())
            origin = order.epochs.position(len(found))
        assert found == reference(count, seed, parts)


@pytest.mark.parametrize("make_feed", [DeviceFeed, HostFeed])
def test_feeds_continue_with_another_batch_size(make_feed, mesh, monkeypatch):
    monkeypatch.setattr("flaxmnist.data.feeds.SLAB_BYTES", 8)
    count, seed = 23, 4
    split = Split(np.zeros((count, 1, 1), np.uint8), np.arange(count, dtype=np.uint8))
    parts, found, origin = [(4, 7), (6, 3), (3, 12), (4, 9)], [], START
    for size, steps in parts:
        feed = make_feed(split, size, mesh, seed).continuing(origin)
        for batches, number in feed.chunks(origin.step, origin.step + steps):
            for step in range(len(found), len(found) + number):
                batch = batches.at(np.int32(step))
                assert batch["mask"].all()
                found.append(batch["label"].tolist())
        origin = Epochs(count, size, origin).position(len(found))
    assert found == reference(count, seed, parts)


COUNT = 230
CONFIG = tiny_config(
    batch_size=40,
    num_steps=13,
    log_every=4,
    eval_every="1 epochs",
    checkpoint_every=3,
    keep_checkpoints=10,
    model={"name": "softmax"},
    optimizer={"learning_rate": 0.1, "schedule": "exponential"},
)
# At step 13, 110 of the 230 examples of the third epoch are left.
CHANGES = {"batch_size": 30, "optimizer.learning_rate": 0.03, "num_epochs": 5}
CHANGED = override(CONFIG, CHANGES)


def examples(count, seed):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 4, 4), dtype=np.uint8)
    return images, rng.integers(0, 3, count, dtype=np.uint8)


DATA = Dataset.from_arrays(
    examples(COUNT, 0), examples(50, 1), validation=examples(50, 2)
)


def run(config, workdir, hooks=(), **options):
    return loop.train_and_evaluate(config, workdir, hooks, DATA, **options)


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """A run of 13 steps. Copy it before changing it."""
    workdir = tmp_path_factory.mktemp("before") / "run"
    run(CONFIG, workdir)
    return workdir


@pytest.fixture(scope="module")
def changed(before, tmp_path_factory):
    """The same run, continued with other options. Copy it before changing it."""
    workdir = shutil.copytree(before, tmp_path_factory.mktemp("changed") / "run")
    return workdir, run(override(CHANGED, {"report": True}), workdir, allow_change=True)


def test_a_change_is_recorded(changed):
    workdir, summary = changed
    options = {"batch_size": [40, 30], "optimizer.learning_rate": [0.1, 0.03]}
    change = {"step": 13, "options": options}
    # Three steps end the third epoch, and seven are an epoch.
    assert summary.step == summary.total_steps == 13 + 3 + 2 * 7
    assert json.loads((workdir / "summary.json").read_text())["changes"] == [change]
    assert [line for line in lines(workdir) if "options" in line] == [change]
    epochs = {line["step"]: line["epoch"] for line in lines(workdir) if "loss" in line}
    assert (epochs[12], epochs[16], epochs[30]) == (12 / 5, 3, 5)
    steps = [one["step"] for one in lines(workdir) if one.get("split") == "validation"]
    assert steps == [5, 10, 13, 16, 23, 30]
    page = (workdir / "report.html").read_text()
    assert "Changed at step 13: batch_size 40 → 30, optimizer.learning_rate" in page
    assert configs.differences(workdirs.saved_config(workdir), CHANGED) == []
    assert workdirs.saved_summary(workdir) == summary
    assert open_run(workdir, 12, data=DATA).manifest.changes == ()
    assert open_run(workdir, data=DATA).evaluate("test") == summary.test


def test_a_changed_run_keeps_its_state_and_takes_the_next_examples(before, changed):
    experiment = Experiment.build(CHANGED, DATA)
    with Checkpoints(before / "checkpoints", read_only=True) as checkpoints:
        tree, _ = checkpoints.restore(13, lambda _: resume.abstract_tree(experiment))
    state = tree["state"]
    for rows in reference(COUNT, 0, [(40, 13), (30, 17)])[13:]:
        images, labels = DATA.train.images[rows], DATA.train.labels[rows]
        batch = {"image": images[..., None], "label": labels.astype(np.int32)}
        state, _ = train_step(state, batch)
    found, manifest = saved(CHANGED, changed[0], data=DATA)
    assert manifest.origin == Origin(13, 2, 120)
    assert found["state"].step == state.step == 30
    for name in ("params", "opt_state"):
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
            getattr(found["state"], name),
            jax.device_get(getattr(state, name)),
        )


def test_a_run_killed_after_a_change_resumes_to_the_bit(
    before, changed, tmp_path, monkeypatch, capsys
):
    workdir = shutil.copytree(before, tmp_path / "run")
    advance = Experiment.advance
    # Before the first checkpoint after the change, of step 15, and later.
    for step, allow_change in ((14, True), (14, False), (18, False)):

        def die(experiment, progress, steps, step=step):
            if progress.step == step:
                raise ZeroDivisionError
            return advance(experiment, progress, 1)

        monkeypatch.setattr(Experiment, "advance", die)
        with pytest.raises(ZeroDivisionError):
            run(CHANGED, workdir, allow_change=allow_change)
        assert len([line for line in lines(workdir) if "options" in line]) == 1
    monkeypatch.undo()
    summary = run(CHANGED, workdir)
    assert summary.changes == changed[1].changes
    assert timeless(lines(workdir)) == timeless(lines(changed[0]))
    assert_identical(
        *(saved(CHANGED, one, data=DATA)[0] for one in (workdir, changed[0]))
    )
    assert "was changed since" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["adam", "prodigy"])
def test_gradients_can_be_clipped_from_a_checkpoint_on(name, tmp_path):
    config = override(CONFIG, {"optimizer.name": name, "num_epochs": 1})
    run(config, tmp_path)
    clipped = override(config, {"optimizer.clip_norm": 1.0, "num_epochs": 2})
    assert run(clipped, tmp_path, allow_change=True).step == 10


def test_a_change_applies_from_an_older_checkpoint_if_newer_are_damaged(
    changed, tmp_path
):
    workdir = shutil.copytree(changed[0], tmp_path / "run")
    for folder in (workdir / "checkpoints").iterdir():
        if int(folder.name) > 12:
            (folder / "record/metadata").write_text("{}")
    summary = run(CHANGED, workdir)
    assert [change.step for change in summary.changes] == [12]
    # Four steps end the third epoch.
    assert summary.step == 12 + 5 + 2 * 7
    assert [one["step"] for one in lines(workdir) if "options" in one] == [12]


def test_other_changes_are_refused_and_the_message_says_which_are_permitted(
    before, tmp_path
):
    workdir = shutil.copytree(before, tmp_path / "run")
    config = (workdir / "config.json").read_bytes()
    permitted = (
        r"learning_rate: 0.1 in the saved run, 0.03 in this run \(--allow_change "
        r"permits it for a single run\)"
    )
    with pytest.raises(UserError, match=permitted):
        run(CHANGED, workdir)
    seed = override(CHANGED, {"seed": 1})
    with pytest.raises(UserError, match=r"seed: 0 in the saved run, 1 in this run$"):
        run(seed, workdir, allow_change=True)
    momentum = {"optimizer.name": "sgd", "optimizer.momentum": 0.9}
    with pytest.raises(UserError, match=r"name adam → sgd.*: .* --init_from"):
        run(override(CONFIG, momentum), workdir, allow_change=True)
    assert (workdir / "config.json").read_bytes() == config
    finished = override(CHANGED, {"num_steps": CONFIG.num_steps})
    said = r"is finished at step .* 0.03 has no effect any more. .*num_steps=26"
    with pytest.raises(UserError, match=said):
        run(finished, workdir, allow_change=True)
    # Without its results, such as after a failure of the final evaluation, it ends.
    (workdir / "summary.json").unlink()
    assert run(finished, workdir, allow_change=True).step == CONFIG.num_steps
    shutil.copytree(before, workdir, dirs_exist_ok=True)
    (workdir / "config.json").unlink()
    with pytest.raises(UserError, match=permitted):
        run(CHANGED, workdir)


def test_gradients_are_clipped_from_a_step_on(before, tmp_path):
    """The state of the optimizer then has another structure."""
    workdir = shutil.copytree(before, tmp_path / "run")
    config = override(CONFIG, {"optimizer.clip_norm": 1e-9, "num_steps": 14})
    run(config, workdir, allow_change=True)
    former, _ = saved(CONFIG, workdir, 13, data=DATA)
    now, _ = saved(config, workdir, data=DATA)
    former, now = (
        {name: leaf for name, leaf in sharding.named_leaves(one["state"].opt_state)}
        for one in (former, now)
    )
    for name, leaf in former.items():
        if "/mu/" in name:
            np.testing.assert_allclose(now[f"1/{name}"], 0.9 * leaf, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("placement", ["device", "host"])
def test_several_changes_and_a_rollback_resume_to_the_bit(
    placement, tmp_path, monkeypatch, capsys
):
    advance = Experiment.advance
    place = {"data.placement": placement, "on_nan": "rollback", "num_epochs": 7}
    changes = [{}, {"batch_size": 30}, {"batch_size": 70, "grad_accumulation": 2}]
    changes = [change | place for change in changes]

    def train(workdir, stops):
        """Trains with the changes in turn, in processes that end at these steps."""
        fail = set()

        def disturbed(experiment, progress, steps):
            if progress.step in stops:
                stops.remove(progress.step)
                raise ZeroDivisionError
            progress = advance(experiment, progress, 1)
            if progress.step == 27 and not fail:
                fail.add(27)
                figures = dataclasses.replace(progress.figures, loss=np.nan)
                progress = dataclasses.replace(progress, figures=figures)
            return progress

        monkeypatch.setattr(Experiment, "advance", disturbed)
        for number, change in enumerate(changes):
            config, last = override(CONFIG, change), (9, 22, None)[number]
            if last:
                config = override(config, {"num_steps": last})
            for _ in range(3):
                try:
                    run(config, workdir, allow_change=True)
                    break
                except ZeroDivisionError:
                    pass
        return saved(config, workdir, data=DATA)

    whole = train(tmp_path / "whole", [])
    tree, manifest = train(tmp_path / "disturbed", [10, 14, 23, 25])
    assert "back to step 24" in capsys.readouterr().err
    assert_identical(whole[0], tree)
    assert (manifest.rollbacks, [one.step for one in manifest.changes]) == (1, [9, 22])
    logs = [timeless(lines(tmp_path / name)) for name in ("whole", "disturbed")]
    assert logs[0] == logs[1]


def test_a_jump_of_the_learning_rate_is_warned_of(before, tmp_path, capsys):
    """The schedule of `CONFIG` is multiplied by 0.95 per epoch of 5 or 7 steps."""
    workdir = shutil.copytree(before, tmp_path / "run")
    config = override(CONFIG, {"batch_size": 30, "num_steps": 14})
    run(config, workdir, allow_change=True)
    assert "the learning rate jumps from" in capsys.readouterr().err


def test_durations_are_compared_with_the_length_of_the_changed_run(before, tmp_path):
    """After step 13, two of five epochs remain, of a step each."""
    workdir = shutil.copytree(before, tmp_path / "run")
    changes = {"batch_size": 200, "num_epochs": 5, "optimizer.warmup": 6}
    config = override(CONFIG, {**changes, "augment.stop_before_end": 6})
    # Five epochs of this batch size alone would be 5 steps.
    assert run(config, workdir, allow_change=True).step == 15
    assert run(config, workdir).step == 15
