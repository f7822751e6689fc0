"""Hooks of the user: what they are given, and what their errors cost."""

import re
import sys
import traceback
import types

import pytest
from helpers import ROOT, lines, stop_at, timeless, tiny_config

from flaxmnist.errors import HookError, StoppedError, UserError
from flaxmnist.rundir import folder
from flaxmnist.training import loop

CONFIG = tiny_config(model={"name": "softmax"}, summaries=("norms",))


def test_a_hook_gets_each_line_of_the_log_and_the_summary(tmp_path, monkeypatch):
    results = []
    with monkeypatch.context() as patch:
        stop_at((20, "train"), patch)
        with pytest.raises(StoppedError):
            loop.train_and_evaluate(CONFIG, tmp_path, [results.append])
    assert [result.step for result in results] == [10, 20, 20, 30]
    summary = loop.train_and_evaluate(CONFIG, tmp_path, [results.append])
    *records, last = results
    assert last == summary
    assert [record.to_json() for record in records] == lines(tmp_path)
    validation = records[-1]
    assert validation.scalars() == {
        "validation/epoch": 2.0,
        "validation/loss": validation.loss,
        "validation/accuracy": validation.accuracy,
    }
    assert summary.scalars()["final/test/accuracy"] == summary.test.accuracy


@pytest.mark.parametrize(
    ("error", "raised"),
    [(ZeroDivisionError, ZeroDivisionError), (ConnectionError, HookError)],
)
def test_an_error_of_a_hook_keeps_its_traceback_and_costs_no_step(
    error, raised, tmp_path
):
    def fail(result):
        if result.step == 20:
            raise error("no network")

    with pytest.raises(raised, match="no network") as found:
        loop.train_and_evaluate(CONFIG, tmp_path, [fail])
    own = found.value if raised is error else found.value.__cause__
    assert traceback.extract_tb(own.__traceback__)[-1].name == "fail"
    assert folder.saved_steps(tmp_path) == [20]
    results = []
    loop.train_and_evaluate(CONFIG, tmp_path, [results.append])
    assert [result.step for result in results] == [30, 40, 40, 40]
    loop.train_and_evaluate(CONFIG, tmp_path / "undisturbed")
    assert timeless(lines(tmp_path)) == timeless(lines(tmp_path / "undisturbed"))


@pytest.mark.parametrize("hooks", [print, None, [None], iter([print])])
def test_hooks_that_cannot_be_called_are_refused_at_once(hooks, tmp_path):
    with pytest.raises(UserError, match=r"hooks=.*: expected a list of functions"):
        loop.train_and_evaluate(CONFIG, tmp_path / "run", hooks)
    assert not (tmp_path / "run").exists()


def test_the_example_in_the_documentation_runs(tmp_path, monkeypatch):
    text = (ROOT / "docs/how-to/trackers.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    assert '"mlp"' in code
    logged = {}
    wandb = types.SimpleNamespace(
        init=lambda **options: None,
        log=lambda figures, step: logged.setdefault(step, {}).update(figures),
    )
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.chdir(tmp_path)
    exec(code.replace('"mlp"', "config"), {"config": CONFIG})
    assert list(logged) == [10, 20, 30, 40]
    assert {"train/loss", "validation/loss", "final/test/loss"} < set(logged[40])
