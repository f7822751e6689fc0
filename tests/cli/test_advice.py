"""Advice in error messages: following it does not lead to the same error again."""

import ast
import dataclasses
import importlib.metadata
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, batch_of, stop_at, write_idx

import flaxmnist
from flaxmnist import config as configs
from flaxmnist import data
from flaxmnist.__main__ import main
from flaxmnist.cli import report, train
from flaxmnist.core import batch
from flaxmnist.data import download, feeds
from flaxmnist.errors import UserError
from flaxmnist.report import html
from flaxmnist.rundir.results import Figures
from flaxmnist.training import loop, sanity
from flaxmnist.training.experiment import Experiment

SMALL = [
    "--config=softmax:smoke",
    "--config.num_steps=4",
    "--config.mesh.data=1",
    "--config.data.placement=host",
]
SLURM = {"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "no-such-host.invalid"}
OPTIMIZER = "--config.optimizer"
# Flags (or environment variables) that fail, a pattern that finds the advice in the
# error, and what a user would then give instead, with the groups of the pattern.
CASES = [
    (
        ["--config.mesh.data=2", "--config.batch_size=127"],
        r"such as (\d+) or (\d+)",
        ["--config.mesh.data=2", "--config.batch_size={0}"],
        ["--config.mesh.data=2", "--config.batch_size={1}"],
    ),
    (
        ["--config.mesh.data=7", "--config.batch_size=5"],
        r"such as (\d+)$",
        ["--config.mesh.data=7", "--config.batch_size={0}"],
    ),
    (
        ["--config.grad_accumulation=3"],
        r"a multiple of (\d+), such as (\d+)",
        ["--config.grad_accumulation=3", "--config.batch_size={0}"],
        ["--config.grad_accumulation=3", "--config.batch_size={1}"],
    ),
    (
        ["--config.batch_size=2001"],
        r"at most (\d),(\d+)",
        ["--config.batch_size={0}{1}"],
    ),
    (["--devices=0,5000"], r"such as (--devices=\d)$", ["{0}"]),
    (
        ["--config.mesh.data=-1", "--config.mesh.model=3"],
        r"one of 1, 2, (\d), (\d), or",
        ["--config.mesh.data=-1", "--config.mesh.model={0}"],
        ["--config.mesh.data=-1", "--config.mesh.model={1}"],
    ),
    (["--overfit=99"], r"at most (\d+) batches", ["--overfit={0}"]),
    (["--config.seed"], r"expected (--config.seed=)VALUE", ["{0}1"]),
    (["--config.model=7"], r"such as (model.name)", ["--config.{0}=softmax"]),
    (
        ["--config.num_epochs=2", "--config.num_steps=4"],
        r"expected one of them, and the other to be (None)",
        ["--config.num_epochs=2", "--config.num_steps={0}"],
    ),
    (
        [f"{OPTIMIZER}.name=sgd", f"{OPTIMIZER}.nesterov=True"],
        r"requires (optimizer.momentum)",
        [f"{OPTIMIZER}.name=sgd", f"{OPTIMIZER}.nesterov=True", "--config.{0}=0.9"],
    ),
    (
        [f"{OPTIMIZER}.name=adam", f"{OPTIMIZER}.momentum=0.9"],
        r"expected optimizer.name to be '(\w+)'",
        [f"{OPTIMIZER}.name={{0}}", f"{OPTIMIZER}.momentum=0.9"],
    ),
    (
        [f"{OPTIMIZER}.schedule=constant", f"{OPTIMIZER}.decay_rate=0.9"],
        r"expected schedule '(\w+)'",
        [f"{OPTIMIZER}.schedule={{0}}", f"{OPTIMIZER}.decay_rate=0.9"],
    ),
    (
        [f"{OPTIMIZER}.schedule=constant", f"{OPTIMIZER}.warmup=9"],
        r"expected fewer than the run's (\d)",
        [f"{OPTIMIZER}.schedule=constant", f"{OPTIMIZER}.warmup=3"],
    ),
    (
        ["--config.model.name=mlp", "--config.model.kernel_stddev=0.1"],
        r"(model.kernel_init)='\w+'; expected '(\w+)'",
        [
            "--config.model.name=mlp",
            "--config.model.kernel_stddev=0.1",
            "--config.{0}={1}",
        ],
    ),
    (["--confg.seed=1"], r"did you mean '(--\w+)'", ["{0}.seed=1"]),
    (["--config.sed=1"], r"did you mean '(\w+)'", ["--config.{0}=1"]),
    (["--config.data.source=sinthetic"], r"mean '(\w+)'", ["--config.data.source={0}"]),
    (["--num_processes=2"], r"give --num_processes (1) alone", ["--num_processes={0}"]),
    (["--process_id=0"], r"give --num_processes (1) alone", ["--num_processes={0}"]),
    (
        {"SLURM_STEP_NUM_TASKS": "2"},
        r"pass (--num_processes) (1) to",
        ["{0}={1}"],
    ),
    (
        {"OMPI_MCA_orte_hnp_uri": "1.0;tcp://h:1"},
        r"pass (--num_processes) (1) to",
        ["{0}={1}"],
    ),
    (
        SLURM | {"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"},
        r"pass (--num_processes) (1)$",
        ["{0}={1}"],
    ),
    (
        ["--config.data.source=idx"],
        r"set (data.dir) or (FLAXMNIST_DATA_DIR)",
        ["--config.data.source=idx", "--config.{0}=idx"],
        ["--config.data.source=idx", "{1}=idx"],
    ),
    (
        ["--config.data.source=idx", "FLAXMNIST_DATA_DIR=nowhere"],
        r"(FLAXMNIST_DATA_DIR)='nowhere' does not exist",
        ["--config.data.source=idx", "{0}=idx"],
    ),
]


def attempt(flags, capsys, monkeypatch):
    """Returns exit code and error of a dry run; NAME=VALUE is in the environment."""
    with monkeypatch.context() as patch:
        given = [] if any("--overfit" in flag for flag in flags) else ["--dry_run"]
        for flag in flags:
            if flag[0].isupper():
                patch.setenv(*flag.split("=", 1))
            else:
                given.append(flag)
        code = train.main([*SMALL, *given])
    return code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "pattern", "followed"),
    [
        (list(wrong), pattern, followed)
        if isinstance(wrong, list)
        else ([f"{name}={value}" for name, value in wrong.items()], pattern, followed)
        for wrong, pattern, *followed in CASES
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else None,
)
def test_advice_on_flags_can_be_followed(
    wrong, pattern, followed, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    # Without compiling: these errors come before.
    monkeypatch.setattr(sanity, "dry_run", Experiment.build)
    memorized = Figures(loss=0.0, accuracy=1.0, count=1)
    monkeypatch.setattr(
        Experiment,
        "advance",
        lambda self, progress, _: dataclasses.replace(progress, figures=memorized),
    )
    write_idx(tmp_path / "idx", counts=(240, 20))
    code, error = attempt(wrong, capsys, monkeypatch)
    assert code == 2
    (found,) = re.finditer(pattern, error, re.MULTILINE)
    for flags in followed:
        right = [flag.format(*found.groups()) for flag in flags]
        code, error = attempt(right, capsys, monkeypatch)
        assert code == 0, error


def damage_array(run):
    # Every file: some hold the optimizer's arrays only, which are not always read.
    for path in (run / "checkpoints" / "40" / "arrays").rglob("d/*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damage_record(run):
    (run / "checkpoints" / "40" / "record" / "metadata").write_text("{")


def damage_config(run):
    (run / "config.json").write_text("{")


def link_report(run):
    (run / "report.html").symlink_to(run / "elsewhere")


def nothing(run):
    pass


def remove_file(run, path):
    assert Path(path).parent == run
    Path(path).unlink()


def resume(run, command):
    python, module, name, *flags = shlex.split(command)
    assert (python, module, name) == ("python", "-m", "flaxmnist.main")
    assert train.main(flags) == 0


SYNTHETIC = [
    "--config.num_steps=40",
    "--config.data.source=synthetic",
    "--config.mesh.data=1",
    "--config.report=False",
]
RUN, NEW = "--workdir={run}", "--workdir={run}/../new"
# What is done to a finished run, flags that fail, a pattern that finds the advice, and
# the flags of a user who follows it, perhaps after an action with the first group.
RUN_CASES = [
    (nothing, ["--mode=eval"], r"are required: (--workdir)", ["--mode=eval", RUN]),
    (
        nothing,
        [RUN, "--mode=eval", "--step=30"],
        r"saved steps: (\d+), (\d+)$",
        [RUN, "--mode=eval", "--step={0}"],
        [RUN, "--mode=eval", "--step={1}"],
    ),
    (
        nothing,
        [RUN, "--config.batch_size=50"],
        r"(batch_size): (\d+) in the saved run",
        [RUN, "--config.{0}={1}"],
    ),
    (
        nothing,
        [NEW, "--dry_run"],
        r"or (--config) to start a run",
        [NEW, "--dry_run", "{0}=softmax:smoke"],
    ),
    (
        damage_array,
        [RUN, "--mode=eval", "--step=40"],
        r"; open '(.*)' alone, with (--step) (\d+)$",
        ["--workdir={0}", "--mode=eval", "{1}={2}"],
        ["--workdir={0}", "--mode=predict", "{1}={2}"],
    ),
    (
        damage_record,
        [RUN, "--mode=eval", "--step=20"],
        r"; to move it aside, resume the run: (.*)$",
        resume,
        [RUN, "--mode=eval", "--step=20"],
        [RUN, "--mode=eval"],
    ),
    (
        damage_config,
        [RUN],
        r"(/[^:]*) cannot be read .* Remove it and give (--config) to",
        remove_file,
        [RUN, "--mode=eval", "{1}=cnn", *SYNTHETIC],
        [RUN, "{1}=cnn", *SYNTHETIC],
        [RUN, "--mode=eval"],
    ),
    (
        link_report,
        [RUN],
        r"(/[^:]*) is a link, .* Remove the link,",
        remove_file,
        [RUN],
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "wrong", "pattern", "followed"),
    [(*case[:3], case[3:]) for case in RUN_CASES],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_advice_on_a_run_can_be_followed(
    change, wrong, pattern, followed, finished_run, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(sanity, "dry_run", Experiment.build)
    run = shutil.copytree(finished_run[0], tmp_path / "my run")
    change(run)
    assert main([flag.format(run=run) for flag in wrong]) == 2
    (found,) = re.finditer(pattern, capsys.readouterr().err, re.MULTILINE)
    for step in followed:
        if callable(step):
            step(run, found[1])
            continue
        flags = [flag.format(*found.groups(), run=run) for flag in step]
        code, error = main(flags), capsys.readouterr().err
        # Then follow the list of the options of the run.
        if (
            code == 2
            and "--workdir contains a run with a different configuration" in error
        ):
            options = re.findall(r"([\w.]+): (.*?) in the saved run, ", error)
            assert options
            flags += [f"--config.{name}={value}" for name, value in options]
            code, error = main(flags), capsys.readouterr().err
        assert code == 0, error


def test_the_advice_of_a_run_that_is_stopped_can_be_followed(
    finished_run, tmp_path, capsys, monkeypatch
):
    run = shutil.copytree(finished_run[0], tmp_path / "my run")
    with monkeypatch.context() as patch:
        stop_at((50, "train"), patch)
        assert train.main([f"--workdir={run}", "--config.num_steps=60"]) == 130
    (advised,) = re.findall(
        "; (--workdir .*) (?:resumes|evaluates)", capsys.readouterr().err
    )
    resumed = []
    monkeypatch.setattr(
        loop, "train_and_evaluate", lambda _, workdir, **__: resumed.append(workdir)
    )
    assert train.main(shlex.split(advised)) == 0
    assert resumed == [run]


def test_the_advice_of_a_run_without_its_report_can_be_followed(
    finished_run, tmp_path, capsys, monkeypatch
):
    run, written = shutil.copytree(finished_run[0], tmp_path / "my run"), []
    monkeypatch.setattr(html, "write_report", lambda *given: 1 / 0)
    assert train.main([f"--workdir={run}", "--config.report=True"]) == 0
    (flags,) = re.findall("-m flaxmnist.report (.*)$", capsys.readouterr().err, re.M)
    monkeypatch.setattr(html, "write_report", lambda *given: written.append(given[1]))
    assert report.main(shlex.split(flags)) == 0
    assert written == [run]


def test_the_advice_on_a_default_directory_can_be_followed(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loop, "train_and_evaluate", lambda *_, **__: None)
    (tmp_path / "runs").touch()
    assert train.main(SMALL) == 2
    (flag,) = re.findall("expected (--workdir) DIR$", capsys.readouterr().err, re.M)
    assert train.main([*SMALL, f"{flag}=elsewhere"]) == 0


@pytest.mark.slow
def test_advice_on_virtual_devices_can_be_followed(capsys):
    assert train.main([*SMALL, "--devices=0,9", "--dry_run"]) == 2
    (flag,) = re.findall("or add (--num_cpu_devices=[0-9]+)$", capsys.readouterr().err)
    # Only a new process can have other devices.
    script = (
        "import sys; from flaxmnist.cli import train; "
        "from flaxmnist.training import experiment, sanity; "
        "sanity.dry_run = experiment.Experiment.build; sys.exit(train.main())"
    )
    command = [sys.executable, "-c", script, *SMALL, "--devices=0,9", "--dry_run", flag]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_advice_on_data_that_do_not_fit_can_be_followed(mesh, monkeypatch):
    monkeypatch.setattr(feeds, "available_memory", lambda: 1_000)
    changes = {"num_steps": 1, "data.source": "synthetic", "mesh.data": 1}
    flags = [(name, str(value)) for name, value in changes.items()]
    config = configs.override(configs.load("softmax"), flags)
    with pytest.raises(UserError) as found:
        Experiment.build(config)
    (advised,) = re.findall("set (data.placement)=(host)$", str(found.value))
    Experiment.build(configs.override(config, [advised]))


def test_advice_on_data_of_another_set_can_be_followed(tmp_path, monkeypatch):
    for folder in ("idx", "other"):
        write_idx(tmp_path / folder, counts=(240, 20))
    monkeypatch.setattr(
        download,
        "is_published",
        lambda name, index, path: path.parent.name == "idx" and name == "kmnist",
    )
    given = {"source": "idx", "name": "mnist", "dir": tmp_path / "idx"}
    with pytest.raises(UserError) as found:
        data.load(**given)
    ((option, name),) = re.findall(
        r"set data\.(name)='(\w+)', or data.dir to ", str(found.value)
    )
    data.load(**given | {option: name})
    data.load(**given | {"dir": tmp_path / "other"})


def test_advice_on_the_cache_can_be_followed(tmp_path, monkeypatch):
    def transfer(resource, path):
        raise download.DownloadError("transferred")

    monkeypatch.setattr(download, "reachable", lambda url: True)
    monkeypatch.setattr(download, "_transfer", transfer)
    monkeypatch.setenv("FLAXMNIST_CACHE_DIR", "/dev/null/x")
    with pytest.raises(UserError) as found:
        data.load("kmnist", "tfds")
    (name,) = re.findall("Set ([A-Z_]+) to a writable directory", str(found.value))
    monkeypatch.setenv(name, str(tmp_path))
    with pytest.raises(UserError, match=r"^transferred$"):
        data.load("kmnist", "tfds")


def test_advice_on_micro_batches_can_be_followed(synthetic):
    with pytest.raises(UserError) as found:
        batch.split_micro_batches(batch_of(synthetic.test, 8), 3)
    (count,) = re.findall(r"such as (\d+)$", str(found.value))
    batch.split_micro_batches(batch_of(synthetic.test, int(count)), 3)


def texts():
    """The texts in the package's code, and the flags that its commands define."""
    found, flags = [], {"--help"}
    for path in Path(flaxmnist.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and "add_argument" in ast.dump(node.func):
                flags |= {getattr(arg, "value", None) for arg in node.args}
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found, flags


def test_flags_commands_and_extras_that_are_named_exist():
    found, flags = texts()
    named = set(re.findall(r"--[a-z_]{2,}", " ".join(found)))
    assert len(named) > 20
    assert {name for name in named if not name.startswith("--xla_")} <= flags | {
        "--version"
    }
    page = (ROOT / "docs/command-line.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"--[a-z_]+", page))
    assert {flag for flag in flags if flag and flag[:2] == "--"} - documented == {
        "--help",
        "--mode",
    }
    for module in re.findall(r"python -m ([\w.]+)", " ".join(found)):
        assert importlib.util.find_spec(module), module
    extras = importlib.metadata.metadata("flaxmnist").get_all("Provides-Extra")
    named = re.findall(r"flaxmnist\[(\w+)\]", " ".join(found))
    assert {"onnx", "tfds"} <= set(named) <= set(extras)
