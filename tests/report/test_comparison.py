"""Comparison of runs: tests against SciPy, seeds that count once, unfinished runs."""

import dataclasses
import re
import shutil

import numpy as np
import pytest
from scipy import stats

from flaxmnist.cli import report
from flaxmnist.report import comparison
from flaxmnist.report.comparison import compare, group, mcnemar, t_test
from flaxmnist.rundir.history import History


def test_mcnemars_test_is_exact():
    first = np.array([True] * 90 + [False] * 10)
    other = first.copy()
    other[:2], other[-9:] = False, True
    p = stats.binomtest(2, 11).pvalue
    assert mcnemar(first, other) == (
        f"9 only here correct, 2 only in the first: p = {p:.2g} "
        "(McNemar, exact, n = 100 images)"
    )
    assert "p = 1 (" in mcnemar(first, first)


def test_seeds_are_paired_where_both_have_the_same():
    first = dict(enumerate([0.991, 0.992, 0.990, 0.993]))
    other = dict(enumerate([0.993, 0.993, 0.9932, 0.994]))
    lists = [[*one.values()] for one in (other, first)]
    paired, welch = stats.ttest_rel(*lists), stats.ttest_ind(*lists, equal_var=False)
    later = {seed + 1: accuracy for seed, accuracy in other.items()}
    for given, found, name in (
        (other, paired, "paired t, 4 seeds"),
        (later, welch, "Welch's t, 4 and 4 seeds"),
    ):
        low, high = found.confidence_interval()
        assert t_test(first, given) == (
            f"+0.18% (95 %: {low:+.2%} to {high:+.2%}), p = {found.pvalue:.2g} ({name})"
        )
    assert "no test (paired t, 4 seeds)" in t_test(first, first)


def of_seed(summary, seed, accuracy):
    test = dataclasses.replace(summary.test, accuracy=accuracy)
    config = summary.config | {"seed": seed}
    summary = dataclasses.replace(summary, config=config, test=test)
    return History(f"run{seed}", summary, [])


def test_a_seed_that_was_trained_twice_counts_once(finished_run):
    summary = finished_run[1]
    runs = [of_seed(summary, *one) for one in ((3, 0.5), (3, 0.5), (4, 0.6))]
    (row,) = compare([*group(runs).values()])
    assert row.names == "run3, run3, run4"
    assert (row.accuracy.count, row.accuracy.mean) == (2, 0.55)
    assert len(row.group.records) == 2
    (row,) = compare([*group([*runs, *runs]).values()])
    assert row.names == "run3, …, run4, 6 runs"
    two = [*group(runs).values(), comparison.Group((runs[0],))]
    assert compare(two)[1].difference == "one seed against several: no test"


@pytest.mark.slow
def test_runs_and_populations_are_compared(finished_run, trained_population, tmp_path):
    run, other, part = (tmp_path / name for name in ("run", "other", "part"))
    for place in (run, other, part):
        shutil.copytree(finished_run[0], place)
    (part / "summary.json").unlink()
    # The same model, as another recipe.
    path = other / "summary.json"
    path.write_text(re.sub('"ema": null', '"ema": 0.9', path.read_text()))
    flags = [f"--workdir={run}", "--compare", str(part), str(other)]
    assert report.main(flags) == 0
    page = (run / "report.html").read_text()
    assert "0 only here correct, 0 only in the first: p = 1 (McNemar" in page
    assert f"<td>{part}</td>" in page
    assert "unfinished, step 40</td>" in page
    copy = tmp_path / "p"
    shutil.copytree(trained_population[0], copy)
    assert report.main([f"--workdir={copy}", "--compare", str(other)]) == 0
    assert "one seed against several" in (copy / "report.html").read_text()
    assert report.main([f"--workdir={other}", "--compare", str(copy)]) == 0
    row = f"<td>{copy / 'seed-0'}, {copy / 'seed-1'}</td>"
    assert row in (other / "report.html").read_text()


def test_a_directory_without_a_run_is_refused(finished_run, tmp_path, capsys):
    flags = [f"--workdir={finished_run[0]}", "--compare", str(tmp_path)]
    assert report.main(flags) == 2
    assert "contains no finished run" in capsys.readouterr().err
