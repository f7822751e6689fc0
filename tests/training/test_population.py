"""Populations: members are ordinary runs, share programs, and resume bit for bit."""

import contextlib
import dataclasses
import json
import logging
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from helpers import assert_identical, lines, saved, stop_at, timeless, tiny_config
from scipy import stats

from flaxmnist.cli import train
from flaxmnist.errors import StoppedError, UserError
from flaxmnist.report.results import PopulationSummary
from flaxmnist.report.statistics import Spread
from flaxmnist.rundir import population
from flaxmnist.rundir.population import Member, vary
from flaxmnist.training.population import train_members


@contextlib.contextmanager
def compilations():
    """Yields a list of the programs that JAX compiles in the block."""
    names = []
    handler, logger = logging.Handler(), logging.getLogger("jax")
    handler.emit = lambda record: names.append(record.getMessage())
    logger.addHandler(handler)
    jax.config.update("jax_log_compiles", True)
    try:
        yield names
    finally:
        jax.config.update("jax_log_compiles", False)
        logger.removeHandler(handler)
        names[:] = [name for name in names if name.startswith("Compiling")]


def test_a_member_is_the_run_of_its_seed(trained_population, finished_run):
    workdir, summary = trained_population
    alone, result = finished_run
    config, member = tiny_config(), workdir / "seed-0"
    assert_identical(saved(config, member)[0], saved(config, alone)[0])
    assert timeless(lines(member)) == timeless(lines(alone))
    assert summary.members["seed-0"].test == result.test
    assert summary.members["seed-1"].test != result.test
    (row,) = summary.settings
    values = [summary.members[name].test.accuracy for name in ("seed-0", "seed-1")]
    assert row.test.mean == np.mean(values)
    page = (workdir / "report.html").read_text()
    assert f"{row.test.mean:.2%} ± {row.test.sd:.2%}" in page
    assert 'href="seed-1/report.html"' in page
    content = json.loads((workdir / "summary.json").read_text())
    assert content["settings"][0]["test"]["count"] == 2


def test_further_seeds_compile_nothing_and_train_no_member_again(
    trained_population, synthetic, tmp_path, capsys
):
    config, workdir = tiny_config(report=True), tmp_path / "p"
    shutil.copytree(trained_population[0], workdir)
    with compilations() as compiled:
        train_members(config, workdir, vary(config, [6, 1, 0]))
    assert compiled == []
    assert f"{workdir / 'seed-1'} is finished at step 40" in capsys.readouterr().out
    names = [one.name for one in population.saved_members(workdir)]
    assert names == ["seed-0", "seed-1", "seed-6"]
    with pytest.raises(UserError, match="seed-6; expected these and perhaps"):
        train_members(config, workdir, vary(config, [0, 1]))
    other = dataclasses.replace(synthetic, train=synthetic.test)
    with pytest.raises(UserError, match="with other examples in train"):
        train_members(config, workdir, data=other)


@pytest.mark.slow
def test_an_interrupted_population_goes_on_bit_for_bit(
    trained_population, tmp_path, monkeypatch
):
    undisturbed, _ = trained_population
    config = tiny_config()
    with monkeypatch.context() as patch:
        # The first member logs at step 10 as well.
        stop_at((30, "train"), patch, signal.SIGTERM)
        with pytest.raises(StoppedError, match=r"(?s)seed-0 .*--workdir .*p continues"):
            train_members(config, tmp_path / "p", vary(config, [0, 1]))
    train_members(config, tmp_path / "p")
    for name in ("seed-0", "seed-1"):
        one, other = tmp_path / "p" / name, undisturbed / name
        assert_identical(saved(config, one)[0], saved(config, other)[0])
        assert timeless(lines(one)) == timeless(lines(other))


FLAGS = [
    "--config=mlp:smoke",
    "--config.model.hidden=8",
    "--config.num_steps=400",
    "--config.log_every=10",
    "--config.checkpoint_every=20",
    "--config.report=False",
    "--num_cpu_devices=1",
    "--seeds=3,4",
]


@pytest.mark.slow
def test_a_killed_population_resumes_bit_for_bit(tmp_path):
    runs = [tmp_path / "killed", tmp_path / "undisturbed"]
    command = [sys.executable, "-m", "flaxmnist", "train", *FLAGS, "--workdir"]
    process = subprocess.Popen([*command, runs[0]])
    log = runs[0] / "seed-4" / "metrics.jsonl"
    while not log.exists() or len(log.read_text().splitlines()) < 5:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (runs[0] / "summary.json").exists()
    for run in runs:
        subprocess.run([*command, run], check=True)
    for name in ("seed-3", "seed-4"):
        one, other = (timeless(lines(run / name)) for run in runs)
        assert one == other
    results = [json.loads((run / "summary.json").read_text()) for run in runs]
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--seeds=a", "--seeds='a': expected FIRST:END, such as 0:8"),
        ("--seeds=3,3", "3 is given twice"),
        ("--seeds=5:5", "seeds is empty"),
        ("--seeds=-1", "seed=-1: expected a whole number"),
        ("--sweep=lr=1,2", "unknown option 'lr'; did you mean"),
        ("--sweep=model.features=(3,4),(5,6)", "changes the shapes of arrays: "),
        ("--sweep=optimizer.name=adam,sgd", "changes the shapes of arrays: "),
        ("--sweep=batch_size=10,20", "batch_size cannot be swept"),
        ("--sweep=data.name=mnist", "data.name cannot be swept"),
        ("--sweep=metrics=optax:sigmoid_binary_cross_entropy", "names code"),
        ("--sweep=seed=1,2", "use seeds, or --seeds"),
        ("--sweep=optimizer.learning_rate", "expected NAME=VALUES"),
        ("--sweep=optimizer.learning_rate=1e-3,0.001", "'0.001' is given twice"),
        ("--sweep=model.dropout_rate=0.1,2", "model.dropout_rate=2: expected"),
        ("--seeds=0:2 --config.seed=1", "has no effect with --seeds"),
        ("--seeds=0:2 --dry_run", "--dry_run is for a single run"),
    ],
)
def test_what_cannot_be_trained_writes_nothing(flags, message, tmp_path, capsys):
    workdir = tmp_path / "p"
    given = ["--config=mlp:smoke", f"--workdir={workdir}", *flags.split()]
    if "features" in flags:
        given[0] = "--config=cnn:smoke"
    assert train.main(given) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not workdir.exists()


def test_a_population_and_a_run_do_not_mix(trained_population, finished_run, tmp_path):
    config = tiny_config()
    with pytest.raises(UserError, match="contains a run; expected a new directory"):
        train_members(config, finished_run[0], vary(config, [0, 1]))
    flags = [f"--workdir={trained_population[0]}", "--seeds=0:2", "--config.ema=0.9"]
    assert train.main(flags) == 2


def of(summary, accuracy):
    validation = dataclasses.replace(summary.validation, accuracy=accuracy)
    return dataclasses.replace(summary, validation=validation)


def test_a_sweep_is_a_product_and_its_table_is_sorted_by_validation(finished_run):
    config = tiny_config()
    rates = {"optimizer.learning_rate": ["1e-3", "2e-3"]}
    members = vary(config, (3, 4), rates)
    assert [one.name for one in members] == [
        "optimizer.learning_rate=0.001,seed-3",
        "optimizer.learning_rate=0.001,seed-4",
        "optimizer.learning_rate=0.002,seed-3",
        "optimizer.learning_rate=0.002,seed-4",
    ]
    accuracies = [0.5, 0.6, 0.7, 0.9]
    summaries = [of(finished_run[1], one) for one in accuracies]
    found = PopulationSummary.of(zip(members, summaries, strict=True))
    assert [one.name for one in found.settings] == [
        "optimizer.learning_rate=0.002",
        "optimizer.learning_rate=0.001",
    ]
    assert "80.00% ± 14.14%" in found.tables()
    alone = vary(config, sweep=rates)
    found = PopulationSummary.of(zip(alone, summaries, strict=False))
    rows = found.tables().splitlines()
    assert [row.split()[0] for row in rows[1:]] == [one.name for one in alone][::-1]


def test_the_interval_of_a_mean_is_students():
    values = [0.991, 0.993, 0.992, 0.996]
    found = Spread.of(values)
    wanted = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    np.testing.assert_allclose((found.low, found.high), wanted)
    assert Spread.of([0.5]) == Spread(1, 0.5)


def test_a_damaged_list_of_members_is_refused(tmp_path):
    path = tmp_path / population.FILE
    up = '{"members": [{"name": "../a", "options": {}}]}'
    code = population.to_json([Member("a", {"metrics": ["os:system"]})])
    for content in ("{", "{}", up, code):
        path.write_text(content)
        with pytest.raises(UserError, match="cannot be read"):
            population.saved_members(tmp_path)
    path.write_text(population.to_json([Member("seed-0", {"seed": 0})]))
    (tmp_path / "seed-0").symlink_to(tmp_path)
    with pytest.raises(UserError, match="is a link"):
        population.saved_members(tmp_path)
