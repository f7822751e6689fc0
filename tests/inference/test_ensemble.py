"""A population, opened as a run: it predicts the mean of its members' probabilities."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest

from flaxmnist import config as configs
from flaxmnist.cli import eval, export, predict
from flaxmnist.core.calibration import energy
from flaxmnist.core.steps import predict_step
from flaxmnist.errors import UserError
from flaxmnist.export import numpy_predictor
from flaxmnist.inference.ensemble import check_alike
from flaxmnist.inference.saved_run import open_run
from flaxmnist.rundir import trust


@pytest.fixture
def workdir(trained_population):
    return trained_population[0]


def test_an_ensemble_predicts_the_mean_of_its_members_probabilities(
    workdir, synthetic, capsys
):
    test = synthetic.test
    images = test.images[..., None]
    members = [open_run(workdir / name).state for name in ("seed-0", "seed-1")]
    mean = np.mean([predict_step(one, images)["probabilities"] for one in members], 0)
    run = open_run(workdir, overrides=iter([("eval_batch_size", 250)]))
    assert {one.config.eval_batch_size for one in (run, *run.members)} == {250}
    found = predict_step(run.state, images)
    np.testing.assert_allclose(found["probabilities"], mean, rtol=1e-5, atol=1e-7)
    assert eval.main([f"--workdir={workdir}"]) == 0
    out = capsys.readouterr().out
    assert "ensemble of 2 × cnn (" in out
    accuracy = (mean.argmax(axis=1) == test.labels).mean()
    assert f"{accuracy:.2%}" in out
    # The energy is the mean of those of the members, and so is its limit.
    logits = [predict_step(one, images)["logits"] for one in members]
    wanted = np.mean([energy(one) for one in logits], axis=0)
    np.testing.assert_allclose(energy(found["logits"]), wanted, rtol=1e-5)
    for name in ("energy_limit", "temperature"):
        values = [getattr(one.calibration, name) for one in run.members]
        np.testing.assert_allclose(getattr(run.calibration, name), np.mean(values))
    figures = run.evaluate("test")
    losses = -np.log(mean[np.arange(len(mean)), test.labels])
    np.testing.assert_allclose(figures.loss, losses.mean(), rtol=1e-5)
    assert predict.main([f"--workdir={workdir}", "--split=test"]) == 0
    assert "ensemble of 2 × cnn" in capsys.readouterr().out
    line = (workdir / "predictions-test.jsonl").read_text().splitlines()[3]
    calibrated = run.calibration.probabilities(np.log(mean[3]))
    np.testing.assert_allclose(json.loads(line)["probabilities"], calibrated, rtol=1e-4)


@pytest.mark.parametrize("format", ["numpy", "safetensors", "stablehlo", "web"])
def test_an_ensemble_is_exported(workdir, format, synthetic):
    # The command compares the export with the checkpoint.
    assert export.main([f"--workdir={workdir}", f"--format={format}"]) == 0
    folder = workdir / "export" / format
    assert "# ensemble of 2 × cnn, trained on" in (folder / "README.md").read_text()
    if format == "numpy":
        model = numpy_predictor.load(folder / "weights.npz")
        assert numpy_predictor.logits(model, synthetic.test.images).shape == (500, 10)


def test_an_ensemble_is_calibrated_from_any_directory(workdir, tmp_path, monkeypatch):
    monkeypatch.chdir(workdir.parent)
    run = open_run(workdir.name)
    monkeypatch.chdir(tmp_path)
    assert run.calibration == open_run(workdir).calibration
    assert run.calibration.energy_limit is not None
    assert run.workdir == workdir


def test_a_warning_of_several_members_is_printed_once(workdir, monkeypatch, capsys):
    monkeypatch.setattr(trust, "changed_code", lambda *args: ["the source changed"])
    for _ in range(2):
        open_run(workdir)
        assert capsys.readouterr().err.count("the source changed") == 1


def test_the_advice_on_a_damaged_member_can_be_followed(workdir, tmp_path, capsys):
    copy = shutil.copytree(workdir, tmp_path / "my p")
    best = open_run(copy / "seed-1").step
    for path in (copy / f"seed-1/checkpoints/{best}/arrays").rglob("d/*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert eval.main([f"--workdir={copy}"]) == 2
    error = capsys.readouterr().err
    (found,) = re.finditer(r"; open '(.*)' alone, with (--step) (\d+)$", error, re.M)
    assert eval.main([f"--workdir={found[1]}", found[2], found[3]]) == 0
    assert found[1] == str(copy / "seed-1")


def test_the_report_of_a_population_shows_its_ensemble(workdir):
    run = open_run(workdir)
    page = run.report().read_text()
    assert f"{run.evaluate('test').accuracy:.2%}</b> test accuracy" in page
    assert page.count("ensemble of 2 × cnn") == 2


def test_what_is_no_ensemble_is_refused(workdir, tmp_path, capsys):
    assert eval.main([f"--workdir={workdir / 'seed-2'}"]) == 2
    assert "seed-2 is not a member of the population" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"seed-2 is not a member .*mean 'seed-"):
        open_run(workdir / "seed-2")
    with pytest.raises(UserError, match="step=20: expected no step, as each member"):
        open_run(workdir, 20)
    run = open_run(workdir)
    first, second = run.members
    changes = {"model.dropout_rate": 0.2}
    other = dataclasses.replace(second, config=configs.override(run.config, changes))
    with pytest.raises(
        UserError, match=r"one model: model.dropout_rate is 0.4 in .*-0"
    ):
        check_alike(first, other)
    data = dataclasses.replace(first.manifest.dataset, fingerprints={}, name="mnist")
    manifest = dataclasses.replace(second.manifest, dataset=data)
    with pytest.raises(UserError, match=r"same data: .* was trained on synthetic"):
        check_alike(first, dataclasses.replace(second, manifest=manifest))
    part = tmp_path / "p"
    shutil.copytree(workdir, part)
    (part / "seed-1" / "summary.json").unlink()
    with pytest.raises(UserError, match="seed-1 is not finished; an ensemble requires"):
        open_run(part)
