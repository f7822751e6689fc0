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

from flaxmnist import config as configs
from flaxmnist.cli import report, train
from flaxmnist.errors import DivergedError, StoppedError, UserError
from flaxmnist.inference.saved_run import open_run
from flaxmnist.inference.train import train_population
from flaxmnist.report import population as pages
from flaxmnist.report.results import PopulationSummary
from flaxmnist.report.statistics import Spread
from flaxmnist.rundir import folder as workdirs
from flaxmnist.rundir import population
from flaxmnist.rundir.population import Member
from flaxmnist.rundir.varying import vary
from flaxmnist.training import population as training
from flaxmnist.training.experiment import Experiment
from flaxmnist.training.population import train_members
from flaxmnist.training.resume import begin


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


@pytest.mark.slow
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


def test_a_resumed_sweep_over_losses_keeps_the_options_that_members_share(
    tmp_path, monkeypatch
):
    """The first member has no label smoothing; the other one has."""
    workdir = tmp_path / "p"
    config = tiny_config(num_steps=2, loss={"label_smoothing": 0.1})
    members = vary(config, sweep={"loss.name": ["focal", "cross_entropy"]})
    first, second = (population.configuration(config, one) for one in members)

    def stop(*args, **options):
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(training, "train_and_evaluate", stop)
        with pytest.raises(StoppedError, match=r"--workdir .*p continues"):
            train_members(config, workdir, members)
        other = configs.override(config, {"loss.label_smoothing": 0.2})
        with pytest.raises(UserError, match=r"smoothing: 0.1 in the saved .*, 0.2 in"):
            train_members(other, workdir, members)
    # Without flags, as the message advises.
    train_members(workdirs.saved_config(workdir), workdir)
    assert workdirs.saved_config(workdir / members[0].name) == first
    assert workdirs.saved_config(workdir / members[1].name) == second
    assert second.loss.label_smoothing == 0.1
    assert len(open_run(workdir).members) == 2
    # In 0.2.0, config.json was the configuration of the first member.
    (workdir / "config.json").write_text(configs.to_json(first))
    train_members(config, workdir, members)


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
        ("--seeds=0:99999999999", "a population has at most 1,000 members"),
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
        ("--sweep=optimizer.learning_rate=1e-3,,1", "expected NAME=VALUES"),
        ("--sweep=model.hidden=(64,),(32", "close brackets and quotes"),
        ("--seeds=0:2 --config.seed=1", "one value of seed has no effect"),
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


def test_a_population_and_a_run_do_not_mix(
    trained_population, finished_run, tmp_path, capsys, monkeypatch
):
    config = tiny_config()
    with pytest.raises(UserError, match="contains a run; expected a new directory"):
        train_members(config, finished_run[0], vary(config, [0, 1]))
    with monkeypatch.context() as patch:
        patch.setattr(jax, "process_count", lambda: 2)
        with pytest.raises(UserError, match="start one only, or train the members"):
            train_members(config, tmp_path, vary(config, [0, 1]))
    flags = [f"--workdir={trained_population[0]}", "--seeds=0:2", "--config.ema=0.9"]
    assert train.main(flags) == 2
    said = capsys.readouterr().err
    assert "ema: None in the saved population, 0.9 in this one" in said
    start = configs.override(config, {"init_from": str(trained_population[0])})
    with pytest.raises(UserError, match="is a population; expected a run, such as"):
        begin(Experiment.build(start))
    path = tmp_path / population.FILE
    path.write_text(population.to_json([Member("a", {"sead": 1})]))
    with pytest.raises(UserError, match=r"population.json: member a: unknown option"):
        train_members(config, tmp_path)


def test_one_seed_for_all_members_is_refused(trained_population, capsys):
    workdir = trained_population[0]
    before = (workdir / "summary.json").read_bytes()
    assert train.main([f"--workdir={workdir}", "--config.seed=7"]) == 2
    assert "Remove it; to train further values, give all" in capsys.readouterr().err
    assert (workdir / "summary.json").read_bytes() == before
    with pytest.raises(UserError, match="one value of seed has no effect"):
        train_population("mlp:smoke", workdir, seeds=[1], seed=2)


def test_members_after_a_diverged_one_are_trained(
    trained_population, tmp_path, monkeypatch, capsys
):
    """Member 6 diverges, so that only finished members are left."""
    config, workdir = tiny_config(report=True), tmp_path / "p"
    shutil.copytree(trained_population[0], workdir)
    path = workdir / population.FILE
    before = json.loads(path.read_text())
    member = {"name": "seed-6", "options": {"seed": 6}}
    path.write_text(json.dumps({"members": [member, *before["members"]]}))
    values = json.loads((workdir / "config.json").read_text())
    (workdir / "config.json").write_text(json.dumps(values | {"seed": 6}))

    def diverge(*args, console, **options):
        console.warn("of every member")
        console.warn("of every member")
        raise DivergedError("the loss is not finite", "Try --allow_change")

    def fail(*args):
        raise KeyError("curves")

    monkeypatch.setattr(training, "train_and_evaluate", diverge)
    monkeypatch.setattr(pages, "write_population", fail)
    with pytest.raises(DivergedError) as error:
        train_members(config, workdir)
    said = str(error.value)
    assert said.startswith("1 of 3 members failed; the others are finished\n  seed-6: ")
    assert "Add --config.on_nan=rollback to train" in said
    assert "--allow_change" not in said
    content = json.loads((workdir / "summary.json").read_text())
    assert content["failed"] == ["seed-6"]
    assert [*content["members"]] == ["seed-0", "seed-1"]
    out, warned = capsys.readouterr()
    assert "seed-6 failed: the loss is not finite" in out
    assert "seed-1    40" in out
    assert warned.count("of every member") == 1
    assert "the report was not written (KeyError: 'curves')" in warned
    monkeypatch.undo()
    # An ensemble requires all members, but the report does not.
    assert report.main([f"--workdir={workdir}"]) == 0
    assert "Not finished: seed-6." in (workdir / "report.html").read_text()


def test_members_of_the_former_length_are_not_finished(
    trained_population, tmp_path, capsys
):
    """The population is extended, and stops before or in the second member."""
    config, workdir = tiny_config(num_steps=60), tmp_path / "p"
    shutil.copytree(trained_population[0], workdir)
    (workdir / "config.json").write_text(configs.to_json(config))
    path = workdir / "seed-0" / "summary.json"
    values = json.loads(path.read_text())
    values["config"]["num_steps"] = values["step"] = values["total_steps"] = 60
    path.write_text(json.dumps(values))
    (workdir / "seed-0/checkpoints/60").mkdir()
    for started in (False, True):
        if started:
            (workdir / "config.json").unlink()
            (workdir / "seed-1/checkpoints/50").mkdir()
        assert report.main([f"--workdir={workdir}"]) == 0
        assert "Not finished: seed-1." in (workdir / "report.html").read_text()
        with pytest.raises(UserError, match="seed-1 is not finished; an ensemble"):
            open_run(workdir, config=config)


def test_neither_another_configuration_nor_more_time_makes_members_unfinished(
    trained_population, tmp_path
):
    """The patience of the members was over before the former end."""
    config, workdir = tiny_config(num_steps=60), tmp_path / "p"
    shutil.copytree(trained_population[0], workdir)
    assert len(open_run(workdir, config=config).members) == 2
    (workdir / "config.json").write_text(configs.to_json(config))
    for path in workdir.glob("*/summary.json"):
        values = json.loads(path.read_text())
        path.write_text(json.dumps(values | {"total_steps": 50}))
    assert len(open_run(workdir).members) == 2


def test_an_interrupt_is_reported_once(trained_population, tmp_path, monkeypatch):
    config, workdir = tiny_config(), tmp_path / "p"
    shutil.copytree(trained_population[0], workdir)
    (workdir / "seed-1" / "summary.json").unlink()

    def stop(*args, **options):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(training, "train_and_evaluate", stop)
    with pytest.raises(StoppedError) as stopped:
        train_members(config, workdir)
    assert str(stopped.value).count("continues with this member") == 1


def test_a_population_of_several_models_is_reported(
    trained_population, tmp_path, capsys
):
    workdir = tmp_path / "p"
    shutil.copytree(trained_population[0], workdir)
    members = [
        Member(f"seed-{seed}", {"model.dropout_rate": rate})
        for seed, rate in enumerate((0.4, 0.2))
    ]
    (workdir / population.FILE).write_text(population.to_json(members))
    (workdir / "report.html").unlink()
    assert report.main([f"--workdir={workdir}"]) == 0
    page = (workdir / "report.html").read_text()
    assert "model.dropout_rate=0.2" in page
    assert "ensemble of" not in page
    assert report.main([f"--workdir={workdir}", "--step=20"]) == 2
    assert "step=20: expected no step" in capsys.readouterr().err


def test_the_name_of_a_member_depends_on_its_options_only():
    config, name = tiny_config(), "optimizer.learning_rate"
    long = {f"augment.{each}": [0.1234567, 0.2] for each in ("rotate", "scale")}
    long |= {f"augment.{each}": [0.3456789, 0.5] for each in ("haze", "noise")}
    long |= {"loss.class_weights": [[1 + each / 8 for each in range(10)]]}
    first, second = vary(config, [3], long)[:2]
    assert vary(config, [2, 3], long)[1] == first
    assert first.name != second.name
    assert max(len(first.name), len(second.name)) <= 120
    (member,) = vary(config, sweep={name: [0.25]})
    assert member.name == f"{name}=0.25"


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
    (tmp_path / "seed-0").mkdir()
    (tmp_path / "seed-0" / population.FILE).touch()
    with pytest.raises(UserError, match="contains a population; expected the run"):
        population.saved_members(tmp_path)
    shutil.rmtree(tmp_path / "seed-0")
    (tmp_path / "seed-0").symlink_to(tmp_path)
    with pytest.raises(UserError, match="is a link"):
        population.saved_members(tmp_path)
