"""Comparison of runs: tests against SciPy, seeds that count once, unfinished runs."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
from scipy import stats

from flaxmnist.cli import report
from flaxmnist.inference.saved_run import open_run
from flaxmnist.report import comparison
from flaxmnist.report.comparison import compare, differences, group, mcnemar, t_test
from flaxmnist.rundir.history import History


def test_mcnemars_test_is_exact():
    first = np.array([True] * 90 + [False] * 10)
    other = first.copy()
    other[:2], other[-9:] = False, True
    p = stats.binomtest(2, 11).pvalue
    assert mcnemar(first, other) == (
        f"9 correct only here, 2 correct only in the first: p = {p:.2g} "
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
    assert len(row.group.logs) == 2
    (row,) = compare([*group([*runs, *runs]).values()])
    assert row.names == "run3, …, run4, 6 runs"
    two = [*group(runs).values(), comparison.Group((runs[0],))]
    assert compare(two)[1].difference == "one seed against several: no test"
    alone = [comparison.Group((run,)) for run in runs[1:]]
    assert compare(alone)[1].difference.endswith("of the test images: no test")


@pytest.mark.parametrize(
    ("name", "value", "count"),
    [
        ("eval_every", 10, 2),
        ("patience", 3, 2),
        ("on_nan", "rollback", 1),
        ("ema", 0.9, 2),
        ("log_every", 7, 1),
    ],
)
def test_runs_are_one_row_unless_an_option_decides_about_the_result(
    name, value, count, finished_run
):
    summary = finished_run[1]
    other = dataclasses.replace(summary, config=summary.config | {name: value})
    runs = [of_seed(summary, 3, 0.5), of_seed(other, 4, 0.6)]
    assert len(group(runs)) == count


def test_runs_on_other_numbers_of_devices_differ(finished_run):
    one = finished_run[1]
    eight = dataclasses.replace(one, devices=dataclasses.replace(one.devices, count=8))
    groups = [comparison.Group((History("run", each, []),)) for each in (one, eight)]
    kind = one.devices.kind
    assert differences(groups) == {"devices": [f"1 × {kind}", f"8 × {kind}"]}


@pytest.fixture
def compared(finished_run, tmp_path):
    """A run, the same model as another recipe, an unfinished run, and a file."""
    for name in ("run", "other", "part"):
        shutil.copytree(finished_run[0], tmp_path / name)
    path = tmp_path / "other/summary.json"
    path.write_text(re.sub('"ema": null', '"ema": 0.9', path.read_text()))
    (tmp_path / "part/summary.json").unlink()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/population.json").write_text("{")
    (tmp_path / "run/report.html").write_text("the report")
    return tmp_path


def test_a_comparison_is_a_page_of_its_own(compared, capsys):
    page = compared / "new/compare.html"
    paths = [
        str(compared / name)
        for name in ("run", "other", "part", "notes.txt", "damaged")
    ]
    assert report.main([*paths, f"--output={page}"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(page)
    text = page.read_text()
    assert "0 correct only here, 0 correct only in the first: p = 1 (McNemar" in text
    assert '<th scope="row">part</th>' in text
    assert "unfinished, step 40</td>" in text
    assert "notes.txt" not in text
    assert "population.json cannot be read" in text
    # What differs, and nothing else.
    (table,) = re.findall('aria-label="What differs"><table>(.*?)</table>', text, re.S)
    assert re.findall('<th scope="col">(.*?)</th>', table) == ["runs", "ema"]
    assert re.findall("<td>(.*?)</td>", table) == ["None", "0.9"]
    assert '<a href="../run/report.html">run</a>' in text
    (data,) = re.findall('id="chart-data">(.*?)</script>', text)
    data = json.loads(data)
    assert data["groups"] == ["run", "other", "part (unfinished, step 40)"]
    lines = {chart["title"]: chart["lines"] for chart in data["charts"]}
    assert lines.keys() >= {"Accuracy", "Loss", "Learning rate", "Training speed"}
    assert [line["group"] for line in lines["Loss"]] == [0, 0, 1, 1, 2, 2]
    assert lines["Loss"][0]["step"] == [10, 20, 30, 40]
    assert lines["Loss"][1]["epoch"] == [1.0, 2.0]
    seconds = lines["Loss"][0]["seconds"]
    assert 0 < seconds[0] < seconds[-1]
    # The same records, and an epoch of as many examples.
    assert lines["Loss"][4]["seconds"] == pytest.approx(seconds, rel=0.01)


def test_a_run_that_was_trained_further_is_unfinished(compared, capsys):
    (compared / "other/checkpoints/60").mkdir()
    shutil.rmtree(compared / "part/checkpoints")
    shutil.copy(compared / "run/summary.json", compared / "part")
    names = [str(compared / name) for name in ("run", "other", "part")]
    assert report.main([*names, f"--output={compared}/compare.html"]) == 0
    said = capsys.readouterr().out
    assert f"{names[1]}: unfinished, step 60\n" in said
    assert said.count("unfinished") == 1


def test_a_comparison_changes_no_report(compared):
    run, other = compared / "run", compared / "other"
    assert report.main([f"--workdir={run}", "--compare", str(other)]) == 0
    assert "Comparison of 2 runs" in (run / "comparison.html").read_text()
    (run / "comparison.html").unlink()
    page = open_run(run).report(compare=[other])
    assert page == run / "comparison.html"
    assert "p = 1 (McNemar" in page.read_text()
    flags = [str(run), str(other), f"--output={run / 'report.html'}"]
    assert report.main(flags) == 2
    assert (run / "report.html").read_text() == "the report"


def test_runs_without_data_are_compared_without_a_test(compared, capsys):
    run, other = (str(compared / name) for name in ("run", "other"))
    flags = [run, other, f"--output={compared / 'c.html'}"]
    flags += ["--config.data.source", "npz", "--config.data.dir", "missing"]
    assert report.main(flags) == 0
    assert "without its predictions" in capsys.readouterr().err
    assert "of the test images: no test" in (compared / "c.html").read_text()


@pytest.mark.parametrize(
    "change", [('"ema": null', '"ema": 0.9'), ('"seed": 0', '"seed": 1')]
)
def test_an_override_that_no_run_accepts_is_refused(
    change, finished_run, tmp_path, capsys
):
    """Two recipes are opened, and two runs of one recipe are not."""
    for name in ("run", "other"):
        shutil.copytree(finished_run[0], tmp_path / name)
    path = tmp_path / "other/summary.json"
    path.write_text(path.read_text().replace(*change))
    flags = [str(tmp_path / name) for name in ("run", "other")]
    flags += [f"--output={tmp_path / 'c.html'}", "--config.nonsense=1"]
    assert report.main(flags) == 2
    assert "unknown option 'nonsense'" in capsys.readouterr().err
    assert not (tmp_path / "c.html").exists()


@pytest.mark.slow
def test_members_of_populations_are_compared(
    finished_run, trained_population, tmp_path
):
    page = tmp_path / "c.html"
    flags = [str(trained_population[0]), str(finished_run[0]), f"--output={page}"]
    assert report.main(flags) == 0
    text = page.read_text()
    # The other run has the recipe of the members, and the seed of one of them.
    assert re.search(
        r"</span> \S*/p/seed-0, \S*/p/seed-1, \S*/run</th><td>2</td>", text
    )
    assert "Is the difference more than chance?" not in text


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "expected run directories"),
        (["{0}/missing", "{0}/empty"], "missing does not exist"),
        (["{0}/empty", "--output={0}/c.html"], "no finished run"),
        (["{0}/empty", "--output=c.txt"], "ends in .html"),
        (["--compare", "{0}/empty"], "--compare needs --workdir"),
        (["{0}/empty", "{0}", "--step=3"], "--step is for the report of one run"),
    ],
)
def test_flags_without_runs_or_without_effect_are_refused(
    flags, said, tmp_path, capsys
):
    (tmp_path / "empty").mkdir()
    assert report.main([flag.format(tmp_path) for flag in flags]) == 2
    assert said in capsys.readouterr().err
