"""Further metrics and losses of a run: in the log, the summary and a resumed run."""

import jax
import pytest
from helpers import lines, stop_at, timeless, tiny_config

import flaxmnist
from flaxmnist.errors import StoppedError
from flaxmnist.training import loop


def confidence(logits, labels):
    return jax.nn.softmax(logits).max(axis=1)


def run_config():
    return tiny_config(
        num_steps=30,
        log_every=15,
        eval_every=10,
        checkpoint_every=10,
        metrics=("top5", "macro_f1", confidence),
        loss={"name": "focal", "class_weights": "balanced"},
        model={"name": "softmax"},
        optimizer={"name": "lion", "schedule": "cosine_decay_schedule"},
        summaries=(),
    )


@pytest.mark.slow
def test_metrics_of_a_run_that_resumes(tmp_path, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at((10, "validation"), patch)
        with pytest.raises(StoppedError):
            loop.train_and_evaluate(run_config(), tmp_path / "run")
    summary = loop.train_and_evaluate(run_config(), tmp_path / "run")
    names = {"top5", "macro_f1", "confidence"}
    assert summary.test.metrics.keys() == names
    assert summary.scalars()["final/test/top5"] == summary.test.metrics["top5"]
    records = lines(tmp_path / "run")
    assert all(names <= record.keys() for record in records)
    assert "confidence" in capsys.readouterr().out
    run = flaxmnist.open_run(tmp_path / "run")
    assert run.evaluate("test").metrics == pytest.approx(summary.test.metrics)
    # A checkpoint contains the sums of the steps since the last log.
    loop.train_and_evaluate(run_config(), tmp_path / "whole")
    resumed, whole = (timeless(lines(tmp_path / name)) for name in ("run", "whole"))
    assert resumed == whole
