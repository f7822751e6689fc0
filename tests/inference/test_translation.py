"""Evaluation by the mean of the logits over shifted copies of each image."""

import numpy as np
import pytest

from flaxmnist.cli import eval
from flaxmnist.core.steps import predict_step
from flaxmnist.inference.saved_run import open_run
from flaxmnist.report import statistics


def shifted_by_hand(images):
    """Five copies: plain, and a pixel up, down, left and right; 0 comes in."""
    copies = [images] + [np.zeros_like(images) for _ in range(4)]
    copies[1][:, :-1], copies[2][:, 1:] = images[:, 1:], images[:, :-1]
    copies[3][:, :, :-1], copies[4][:, :, 1:] = images[:, :, 1:], images[:, :, :-1]
    return copies


def mean_logits(state, images):
    copies = shifted_by_hand(images[..., None])
    return np.mean([predict_step(state, copy)["logits"] for copy in copies], axis=0)


@pytest.mark.parametrize("fixture", ["finished_run", "trained_population"])
def test_the_figures_are_those_of_the_mean_over_images_shifted_by_hand(
    fixture, request, synthetic, capsys
):
    workdir, _ = request.getfixturevalue(fixture)
    # 500 examples fill no batch of 300.
    run = open_run(workdir, overrides={"eval_batch_size": 300})
    name = "ensemble of 2 × cnn" if run.members else "cnn"
    test = synthetic.test
    logits = mean_logits(run.state, test.images)
    figures = run.evaluate("test", translate=True)
    assert figures.count == 500
    assert figures.loss != run.evaluate("test").loss
    assert figures.accuracy == np.mean(np.argmax(logits, axis=1) == test.labels)
    losses = statistics.losses(logits, test.labels)
    np.testing.assert_allclose(figures.loss, losses.mean(), rtol=1e-5)
    split = {"eval_batch_size": 300, "mesh.data": 4}
    shared = open_run(workdir, overrides=split, use_mesh=True)
    assert shared.evaluate("test", translate=True).accuracy == figures.accuracy
    before = sorted(path for path in workdir.rglob("*"))
    content = (workdir / "summary.json").read_bytes()
    capsys.readouterr()
    assert eval.main([f"--workdir={workdir}", "--translate"]) == 0
    out = capsys.readouterr().out
    assert f"\n{name}, mean over 5 shifted copies (" in out
    assert f"{figures.accuracy:>8.2%}      500" in out
    assert sorted(path for path in workdir.rglob("*")) == before
    assert (workdir / "summary.json").read_bytes() == content
    summary = run.summarize(translate=True)
    assert summary.model.name == f"{name}, mean over 5 shifted copies"
    assert summary.test == figures
    assert run.model_name == run.summarize().model.name == name
