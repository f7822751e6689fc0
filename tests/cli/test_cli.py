"""The command line: what it takes, what it answers, and how it ends."""

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import NAMES, ROOT, write_idx

import flaxmnist
from flaxmnist import config as configs
from flaxmnist.__main__ import COMMANDS, main
from flaxmnist.cli import eval, export, predict, report, train

NUMBERED = ["--num_processes=2", "--process_id"]
TINY = [
    "--config=mlp:smoke",
    "--config.num_steps=4",
    "--config.mesh.data=1",
    "--config.report=False",
]


def run(capsys, *flags):
    """Returns exit code, standard output and error output."""
    code = main(flags)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def files(tmp_path):
    """Four good files, of which a test breaks one."""
    write_idx(tmp_path, counts=(240, 20))
    return {name: tmp_path / name for name in NAMES}


def missing(tmp_path):
    files(tmp_path)[NAMES[2]].unlink()


def truncated(tmp_path):
    path = files(tmp_path)[NAMES[0]]
    path.write_bytes(path.read_bytes()[:-1])


def too_long(tmp_path):
    path = files(tmp_path)[NAMES[1]]
    path.write_bytes(path.read_bytes() + b"0")


def claims_billions(tmp_path):
    path = files(tmp_path)[NAMES[0]]
    path.write_bytes(path.read_bytes().replace(b"\0\0\0\xf0", b"\x7f\xff\xff\xff", 1))


def wrong_magic(tmp_path):
    paths = files(tmp_path)
    paths[NAMES[0]].write_bytes(paths[NAMES[1]].read_bytes())


def half_a_gzipped_file(tmp_path):
    path = files(tmp_path)[NAMES[3]]
    packed = gzip.compress(path.read_bytes())
    path.write_bytes(packed[: len(packed) // 2])


def fewer_labels(tmp_path):
    paths = files(tmp_path)
    other = tmp_path / "other"
    write_idx(other, counts=(239, 20))
    paths[NAMES[1]].write_bytes((other / NAMES[1]).read_bytes())


def label_above_9(tmp_path):
    path = files(tmp_path)[NAMES[3]]
    path.write_bytes(path.read_bytes()[:-1] + b"\x0a")


BAD_FLAGS = [
    (
        ["--config=nope"],
        r"no configuration 'nope'. Valid names: cifar10, cnn, mlp, softmax",
    ),
    (["--config=configs/cn.py"], r"did you mean 'cnn'"),
    (["--config=cnn:smok"], r"no variant 'smok'; did you mean 'smoke'"),
    (["train"], r"--config is missing; expected a file, or one of cifar10"),
    (
        [*TINY, "--confg=x"],
        r"unknown argument '--confg=x' for flaxmnist train; did you mean '--config'",
    ),
    ([*TINY, "--mode=evaluate"], r"unknown command 'evaluate'; did you mean 'eval'"),
    (["trian", *TINY], r"unknown command 'trian'; did you mean 'train'"),
    ([*TINY, "--mode"], r"unknown argument '--mode' for flaxmnist train"),
    (["predict", "--workdir=x"], r"found neither of PICTURE and --split; expected one"),
    (["predict", "--workdir=x", "--split=test", "a.png"], r"found both of PICTURE and"),
    (["predict", "--workdir=x", "a.png", "--config.seed=1"], r"no effect on pictures"),
    (["predict", "--workdir=x", "a.png", "--config=cnn"], r"no effect on pictures"),
    (["--config=cnn.yaml"], r"no file 'cnn.yaml'; did you mean 'cnn'"),
    (["--config=x/cnn.py"], r"no file 'x/cnn.py'; did you mean 'cnn'"),
    (
        [*TINY, "--config.=1"],
        r"unknown argument '--config.=1' for flaxmnist train; did you mean '--config'",
    ),
    (
        ["--mode=eval", "--workdir=typo"],
        r"typo contains no run; expected a run directory$",
    ),
    ([*TINY, "--workdir="], r"--workdir='': expected a path"),
    (
        [*TINY, "--workdir=."],
        r"--workdir='.' is not a name; expected a directory for this",
    ),
    ([*TINY, "--workdir=x/.."], r"--workdir='x/..' is not a name; expected"),
    ([*TINY, f"--workdir={'x' * 300}"], r"is too long; expected at most 255 bytes in"),
    ([*TINY, "--config.model.name=[1]"], r"model.name=\[1\] is unknown"),
    ([*TINY, "--config.model.hidden=9999999"], r"whole numbers from 1 to 65,536"),
    ([*TINY, "--config.num_epochs=1e300"], r"num_epochs=1e\+300: expected a number"),
    ([*TINY, "--step=3"], r"unknown argument '--step=3' for flaxmnist train"),
    ([*TINY, "--split=test"], r"unknown argument '--split=test' for flaxmnist train"),
    ([*TINY, "--mode=predict"], r"arguments are required: --workdir"),
    ([*TINY, "--mode=predict", "--workdir=x", "--split=tset"], r"choice: 'tset'"),
    ([*TINY, "--platform=gpu"], r"--platform gpu: there is none here, only cpu"),
    ([*TINY, "--platform=gqu"], r"invalid choice: 'gqu' \(choose from 'cpu', 'gpu'"),
    ([*TINY, "--platform=tpu", "--num_cpu_devices=2"], r"is not for --platform tpu"),
    (
        [*TINY, "--devices=0,9"],
        r"\(0, 9\): unknown device 9; expected some of 0, 1",
    ),
    ([*TINY, "--devices=first"], r"mesh.devices='first': expected whole numbers"),
    ([*TINY, "--devices=2", "--config.mesh.data=2"], r"mesh.data=2: .* at most 1, "),
    (
        [*TINY, "--init_from=nowhere"],
        r"no checkpoint in /.*/nowhere/checkpoints",
    ),
    (
        [*TINY, "--mode=eval", "--workdir=x", "--init_from=y"],
        r"unknown argument '--init_from=y' for flaxmnist eval",
    ),
    (
        [*TINY, "--config.mesh.devices=()"],
        r"=\(\): no device is given; expected some of 0, 1",
    ),
    (
        ["--config=cnn:smoke", "--config.model.kernel_size=99"],
        r"at most \(28, 28\), for images of 28×28",
    ),
    ([*TINY, "--init_from=2024.10"], r"no checkpoint in /.*/2024.10/checkpoints"),
    ([*TINY, "--config.modell=1"], r"option 'modell'; did you mean 'model'"),
    ([*TINY, "--config.summaries=histgrams"], r"did you mean 'histograms'"),
    ([*TINY, "--config.log_tensors=probability"], r"did you mean 'probabilities'"),
    ([*TINY, "--config.eval_splits=test"], r"expected .*, validation among them"),
    ([*TINY, "--config.every_n_steps=0"], r"every_n_steps=0: expected a number of"),
    ([*TINY, "--config.model.activation=rely"], r"is unknown; did you mean 'relu'"),
    ([*TINY, "--config.model.kernel_stddev=1"], r"expected 'truncated_normal'"),
    (
        ["--config=cnn:smoke", "--config.model.features=(1,1,1,1,1)"],
        r"convolution 5 has no output for 28×28 pixels",
    ),
    (["--config=cnn:smoke", "--config.model.pool=mean"], r"model.pool='mean'"),
    ([*TINY, "--num_cpu_devices=0"], r"--num_cpu_devices=0: expected 1 to 1,024"),
    ([*TINY, "--config.sed=1"], r"unknown option 'sed'; did you mean 'seed'"),
    ([*TINY, "--config.optimizer.learnin_rate=1"], r"mean 'optimizer.learning_rate'"),
    ([*TINY, "--config.optimiser.name=sgd"], r"did you mean 'optimizer.name'"),
    ([*TINY, "--config.model.dropout=0.1"], r"unknown option 'model.dropout'; did you"),
    (
        [*TINY, "--config.model.name=cmn"],
        r"'cmn' is unknown; did you mean 'cnn'",
    ),
    ([*TINY, "--config.optimizer.name=adamm"], r"is unknown; did you mean 'adam'"),
    ([*TINY, "--config.optimizer.schedule=cosin"], r"did you mean 'cosine'"),
    ([*TINY, "--config.data.source=tdfs"], r"did you mean 'tfds'"),
    ([*TINY, "--config.data.placement=gpu"], r"Valid names: device, host"),
    (
        [*TINY, "--config.data.source=tfds", "--config.data.name=mnst"],
        r"data.name='mnst'.*did you mean 'mnist'",
    ),
    (
        [*TINY, "--config.data.source=auto", "--config.data.name=mnst"],
        r"data.name='mnst'.*did you mean 'mnist'",
    ),
    (
        [*TINY, "--config.data.source=idx", "--config.data.name=kmist"],
        r"data.name='kmist'.*did you mean 'kmnist'",
    ),
    ([*TINY, "--config.model=7"], r"model=7: expected a group of options"),
    ([*TINY, "--config.seed={[]: 1}"], r"seed='\{\[\]: 1\}': expected a whole"),
    ([*TINY, "--config.seed"], r"--config.seed has no value"),
    ([*TINY, "--config.seed=one"], r"seed='one': expected a whole number, 0 or more"),
    ([*TINY, "--config.seed=99999999999999999999"], r"expected a whole number"),
    ([*TINY, "--config.batch_size=0"], r"batch_size=0: expected .* 1 or more"),
    ([*TINY, "--config.batch_size=2.5"], r"batch_size=2.5: expected a whole number"),
    ([*TINY, "--config.batch_size=2001"], r"expected at most 2,000"),
    ([*TINY, "--config.grad_accumulation=3"], r"multiple of 3, such as 126 or 129"),
    ([*TINY, "--config.ema=1"], r"ema=1: expected .* less than 1, or None"),
    ([*TINY, "--config.num_epochs=-1"], r"num_epochs=-1: expected a number"),
    ([*TINY, "--config.num_epochs=2"], r"num_epochs=2 and num_steps=4: expected one"),
    ([*TINY, "--config.log_every=often"], r"log_every='often': expected a number of"),
    ([*TINY, "--config.optimizer.learning_rate=-0.1"], r"greater than 0"),
    ([*TINY, "--config.optimizer.learning_rate=nan"], r"expected a number"),
    (
        [*TINY, "--config.optimizer.name=sgd", "--config.optimizer.nesterov=true"],
        r"nesterov requires optimizer.momentum",
    ),
    (
        [*TINY, "--config.optimizer.momentum=0.9"],
        r"has no effect with .*expected optimizer.name to be 'sgd'",
    ),
    ([*TINY, "--config.optimizer.warmup=9"], r"warmup is 9 steps; expected fewer"),
    ([*TINY, "--config.model.dropout_rate=1.5"], r"0 or more and less than 1"),
    ([*TINY, "--config.model.hidden=(8,0)"], r"model.hidden=\(8, 0\): expected whole"),
    ([*TINY, "--config.mesh.data=9"], r"mesh.data=9: the product is 9; .* at most 8"),
    ([*TINY, "--config.mesh.data=2", "--config.mesh.model=5"], r"model=5, mesh.data=2"),
    (
        [*TINY, "--config.mesh.data=-1", "--config.mesh.model=3"],
        r"mesh.model=3 does not divide the 8 devices .*one of 1, 2, 4, 8",
    ),
    ([*TINY, "--config.mesh.fsdp=1"], r"mesh.fsdp=1: expected True or False"),
    ([*TINY, "--config.mesh.data=7"], r"batch_size=128 cannot .* such as 126 or 133"),
    ([*TINY, "--config.mesh.data=7", "--config.batch_size=5"], r"cannot .* such as 7"),
    ([*TINY, "--num_processes=2"], r"--process_id belong together: expected all three"),
    ([*TINY, "--coordinator=h", *NUMBERED, "0"], r"'h': expected HOST:PORT"),
    ([*TINY, "--coordinator=h:0", *NUMBERED, "0"], r"'h:0': expected HOST:PORT"),
    ([*TINY, "--coordinator=h:1", *NUMBERED, "2"], r"--process_id 2: expected 0 to 1"),
    ([*TINY, "--workdir=/dev/null"], r"--workdir /dev/null is a file"),
    ([*TINY, "--workdir=/dev/null/x"], r"--workdir /dev/null/x cannot be written"),
    ([*TINY, "--workdir=/proc/flaxmnist"], r"--workdir /proc/.* cannot be written"),
    ([*TINY, "--mode=eval"], r"arguments are required: --workdir"),
    (
        [*TINY, "--mode=eval", "--workdir=nothing"],
        r"nothing contains no run",
    ),
]
BAD_FILES = [
    (missing, r"no t10k-images-idx3-ubyte \(or .gz\) in"),
    (truncated, r"contains 188,159 bytes of data; its header announces 188,160"),
    (too_long, r"contains 241 bytes of data; its header announces 240"),
    (claims_billions, r"its header announces 1,683,627,179,248"),
    (wrong_magic, r"starts with 00000801; expected 00000803"),
    (half_a_gzipped_file, r"cannot be read \(Compressed file ended"),
    (fewer_labels, r"contains 240 images, and .* 239 labels"),
    (label_above_9, r"contains the label 10; expected labels from 0 to 9"),
]


def assert_clear(code, error, said, folder):
    assert code == 2
    assert re.search(said, error), error
    assert "Traceback" not in error
    assert 1 <= len(error.strip().splitlines()) <= 2
    assert error.startswith("flaxmnist: ")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "said"), BAD_FLAGS, ids=lambda value: str(value)[-40:]
)
def test_a_mistake_in_the_flags(flags, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, error = run(capsys, *flags)
    assert_clear(code, error, said, tmp_path)


@pytest.mark.parametrize(
    ("spoil", "said"), BAD_FILES, ids=[spoil.__name__ for spoil, _ in BAD_FILES]
)
def test_a_mistake_in_the_data(spoil, said, capsys, tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    monkeypatch.chdir(here)
    spoil(there)
    flags = [*TINY, "--config.data.source=auto", f"--config.data.dir={there}"]
    code, _, error = run(capsys, *flags)
    assert_clear(code, error, said, here)


def follow(module, flags, capsys):
    """Runs a command that fails, and again with the flags that its error advises."""
    assert module.main(flags) == 2
    error = capsys.readouterr().err
    advised = re.findall(r"--(?!num_cpu)[a-z_.]+=[^ ,;]+", error)
    assert advised, error
    assert module.main([*flags, *advised]) == 0, advised
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "flags",
    [
        ["--devices=0,9"],
        ["--config.mesh.devices=()"],
        ["--config.mesh.data=9"],
        ["--config.mesh.data=2", "--config.mesh.model=5"],
        ["--config.mesh.data=-1", "--config.mesh.model=3"],
        ["--config.mesh.data=-1", "--config.mesh.model=16"],
        ["--config.mesh.data=1", "--config.mesh.model=16"],
    ],
)
def test_advice_on_devices_can_be_followed(flags, capsys):
    small = ["--config.model.hidden=8", "--config.data.placement=host", "--dry_run"]
    follow(train, [*TINY, *small, *flags], capsys)


@pytest.mark.parametrize(
    ("module", "flags"),
    [
        (train, ["--config.num_steps=60"]),
        (eval, []),
        (predict, ["--split=test"]),
        (report, []),
        (export, ["--format=numpy"]),
    ],
)
def test_advice_on_data_can_be_followed(module, flags, finished_run, tmp_path, capsys):
    workdir = shutil.copytree(finished_run[0], tmp_path / "run")
    flags = [f"--workdir={workdir}", *flags, "--config.data.source=bundled"]
    follow(module, flags, capsys)


CONFIG_FILES = [
    ("def get_config(arg=None)\n", r"c.py, line 1: SyntaxError: "),
    ("import nosuch\n", r"c.py, line 1: ModuleNotFoundError: No module named 'nosuch'"),
    ("x = 1\n", r"c.py has no get_config; expected a function get_config\(arg=None\)"),
    ("def get_config():\n    pass\n", r"too many positional arguments; expected a f"),
    ("def get_config(arg):\n\n\n\n    return 1 / 0\n", r"line 5: ZeroDiv.* by zero$"),
    ("import json\n\njson.loads('\\n\\nx')\n", r"line 3: JSONDecodeError"),
    ("def get_config(arg):\n    return {}\n", r"returned \{\}: expected a ConfigDict"),
    (
        "from flaxmnist.config import make_config\n"
        "get_config = lambda arg: make_config(num_steps=1, model='cnn')\n",
        r"model='cnn': expected a group of options",
    ),
]


@pytest.mark.parametrize(("content", "said"), CONFIG_FILES)
def test_a_mistake_in_a_configuration_file(
    content, said, capsys, tmp_path, monkeypatch
):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    (tmp_path / "c.py").write_text(content)
    code, _, error = run(capsys, "--config=../c.py")
    assert_clear(code, error, said, here)


def test_a_configuration_imports_a_module_beside_it_and_shows_its_traceback(
    capsys, tmp_path, monkeypatch
):
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "of_here.py").write_text("NAME = 'softmax'")
    (tmp_path / "sub" / "beside.py").write_text("def steps(): return 3")
    (tmp_path / "sub" / "c.py").write_text(
        "import of_here, beside\nfrom flaxmnist.config import make_config\n"
        "def get_config(arg=None):\n    model = {'name': of_here.NAME}\n"
        "    return make_config(num_steps=beside.steps(), model=model)\n"
    )
    before = list(sys.path)
    assert configs.load("sub/c.py").num_steps == 3
    assert sys.path == before
    (tmp_path / "sub" / "c.py").write_text("import beside\nbeside.steps(1)\n")
    code, _, error = run(capsys, "--config=sub/c.py")
    assert (code, error.count("\n")) == (2, 1)
    assert "sub/c.py, line 2: TypeError: steps() takes 0" in error
    code, _, error = run(capsys, "--config=sub/c.py", "-v")
    assert code == 2
    assert "beside.steps(1)" in error


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"model": {"name": ["a"]}}'])
def test_a_damaged_config_json_names_the_file(content, capsys, finished_run, tmp_path):
    workdir = shutil.copytree(finished_run[0], tmp_path / "run")
    (workdir / "config.json").write_text(content)
    code, _, error = run(capsys, f"--workdir={workdir}")
    assert code == 2
    assert "config.json cannot be read" in error


@pytest.mark.slow
def test_a_folder_without_a_checkpoint_takes_another_configuration(capsys, tmp_path):
    rate = "--config.optimizer.learning_rate"
    flags = [*TINY, f"--workdir={tmp_path}", "--config.optimizer.name=sgd"]
    code, _, error = run(capsys, *flags, f"{rate}=1e38")
    assert code == 2
    assert "no checkpoint exists yet" in error
    assert run(capsys, *flags, f"{rate}=1e-3")[0] == 0


def test_files_of_another_program_are_kept(capsys, tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"hidden_size": 768}')
    code, _, error = run(capsys, *TINY, f"--workdir={tmp_path}")
    assert code == 2
    assert f"{path} cannot be read (unknown option 'hidden_size'" in error
    assert [*tmp_path.iterdir()] == [path]
    assert path.read_text() == '{"hidden_size": 768}'
    path.unlink()
    path.mkdir()
    code, _, error = run(capsys, f"--workdir={tmp_path}")
    assert code == 2
    assert f"{path} cannot be read (Is a directory); expected a file" in error


def test_another_configuration_in_the_same_folder(capsys, finished_run):
    workdir, _ = finished_run
    before = sorted(path for path in workdir.rglob("*"))
    changes = ["--config.batch_size=50", "--config.optimizer.learning_rate=0.5"]
    code, _, error = run(capsys, f"--workdir={workdir}", *changes)
    assert code == 2
    assert "batch_size: 100 in the saved run, 50 in this run" in error
    assert "optimizer.learning_rate: 0.01 in the saved run, 0.5 in this run" in error
    assert sorted(path for path in workdir.rglob("*")) == before


def test_a_step_that_is_not_there_lists_those_that_are(capsys, finished_run):
    workdir, _ = finished_run
    flags = ["--mode=eval", f"--workdir={workdir}", "--step=7"]
    code, _, error = run(capsys, *flags)
    assert code == 2
    assert "checkpoint 7 does not exist" in error
    assert error.strip().endswith("20, 40")


@pytest.mark.slow
def test_a_run_without_a_workdir_from_any_folder(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(capsys, *TINY[1:], "--config=configs/mlp.py:smoke")
    assert code == 0
    first, *_ = out.splitlines()
    workdir = Path(first.removeprefix("workdir: "))
    assert workdir.parts[0] == "runs"
    assert workdir.name.startswith("mlp-")
    assert (workdir / "summary.json").is_file()
    assert str(workdir) in out.splitlines()[-1]


@pytest.mark.slow
def test_piped_output_is_plain_lines_and_a_terminal_gets_a_bar(tmp_path):
    pty = pytest.importorskip("pty")
    command = [sys.executable, "-m", "flaxmnist.main", "--config=mlp:smoke"]
    command += [
        "--config.model.hidden=(8,)",
        "--config.num_steps=300",
        "--config.log_every=100",
        "--config.report=False",
        "--num_cpu_devices=1",
    ]
    piped = subprocess.run(
        [*command, f"--workdir={tmp_path / 'a'}"],
        capture_output=True,
        check=True,
        env=os.environ | {"FORCE_COLOR": "1"},
    )
    text = piped.stdout.decode()
    assert piped.stderr == b""
    assert all(character.isprintable() or character == "\n" for character in text)
    reports = [line for line in text.splitlines() if line.startswith("step ")]
    assert len([line for line in reports if "train" in line]) == 3

    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [*command, f"--workdir={tmp_path / 'b'}"],
        stdout=follower,
        stderr=follower,
        env=os.environ | {"TERM": "xterm-256color", "COLUMNS": "120"},
    )
    os.close(follower)
    shown = b""
    while True:
        try:
            block = os.read(leader, 1 << 16)
        except OSError:  # The other end is closed.
            break
        if not block:
            break
        shown += block
    assert process.wait() == 0
    os.close(leader)
    screen = shown.decode()
    for part in ("\x1b[", "images/s", "ETA", "epoch", "loss", "accuracy", "/300", "▁"):
        assert part in screen
    assert "test" in screen.splitlines()[-5] + screen.splitlines()[-4]


TELLING = """
import os, sys
import jax
from flaxmnist.cli import train
from flaxmnist.rundir import metrics_log

write = metrics_log.MetricsWriter.write
def write_and_tell(self, record):
    write(self, record)
    devices = {device.id for array in jax.live_arrays() for device in array.devices()}
    print("arrays on", sorted(devices))
metrics_log.MetricsWriter.write = write_and_tell
code = train.main(sys.argv[1:])
print(os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"], os.environ["XLA_FLAGS"])
sys.exit(code)
"""


@pytest.mark.slow
def test_chosen_devices_alone_are_used_and_jax_is_told_in_time(tmp_path):
    # A package of that name: to import it ends the run.
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text("raise SystemExit('imported')")
    flags = ["--config=cnn:smoke", "--config.num_steps=10", "--num_cpu_devices=4"]
    flags += ["--devices=2,1", "--log_device_placement", "--deterministic"]
    flags += [f"--workdir={tmp_path / 'run'}", "--config.log_tensors=probabilities"]
    flags += ["--config.report=False"]
    flags += ["--config.summaries=norms,histograms,filters,mistakes"]
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", TELLING, *flags],
        capture_output=True,
        text=True,
        env=environment | {"PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    placed = done.stdout.splitlines()
    assert "mesh: {'data': 2, 'model': 1}" in placed
    assert "batch/image: uint8 [128, 28, 28, 1], data, on 2, 1" in placed
    assert "params/Dense_1/bias: float32 [10], replicated, on 2, 1" in placed
    assert {line for line in placed if line.startswith("arrays")} == {
        "arrays on [1, 2]"
    }
    assert placed[-1] == "false --xla_gpu_deterministic_ops=true"


@pytest.mark.slow
def test_programs_are_kept_and_a_damaged_one_is_not_used(tmp_path):
    # Nothing that says which programs are kept, or where.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    environment["FLAXMNIST_CACHE_DIR"] = str(tmp_path / "cache")

    def losses(name, *flags):
        command = [sys.executable, "-m", "flaxmnist.main", *TINY, "--num_cpu_devices=1"]
        done = subprocess.run(
            [*command, f"--workdir={tmp_path / name}", *flags],
            capture_output=True,
            text=True,
            env=environment,
        )
        assert (done.returncode, done.stderr) == (0, "")
        summary = json.loads((tmp_path / name / "summary.json").read_text())
        return [summary[split]["loss"] for split in ("train", "validation", "test")]

    anew = losses("anew", "--no_cache")
    assert not (tmp_path / "cache").exists()
    assert losses("first") == anew
    programs = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert programs
    written = {path: path.stat().st_mtime_ns for path in programs}
    assert losses("second") == anew
    assert {path: path.stat().st_mtime_ns for path in programs} == written
    halves = {path: path.read_bytes()[: path.stat().st_size // 2] for path in programs}
    for path, half in halves.items():
        path.write_bytes(half)
    assert losses("third") == anew
    # They were compiled again, unless that takes no time.
    found = [path for path in programs if path.exists()]
    assert found
    assert all(path.read_bytes() != halves[path] for path in found)


def test_the_bundled_warning_cannot_be_missed(capsys, tmp_path):
    flags = ["--config=softmax", "--config.num_steps=2", "--config.mesh.data=1"]
    code, out, error = run(capsys, *flags, f"--workdir={tmp_path}")
    assert code == 0
    assert "BUNDLED SUBSET" in error
    assert "mnist (bundled)" in out
    assert '"source": "bundled"' in (tmp_path / "summary.json").read_text()


def test_modules_import_only_from_the_floors_below():
    root = ROOT
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_help_and_version_are_printed_without_jax(tmp_path):
    (tmp_path / "jax.py").write_text("raise ImportError")
    run_python = [sys.executable, "-m", "flaxmnist"]
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    for flags, said in (
        ([], "flaxmnist COMMAND"),
        (["--help"], "flaxmnist COMMAND"),
        (["--version"], f"flaxmnist {flaxmnist.__version__}\n"),
    ):
        done = subprocess.run(
            [*run_python, *flags], capture_output=True, text=True, env=environment
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert said in done.stdout


def test_a_run_starts_without_what_it_may_need_later():
    """These take seconds to import."""
    later = ("scipy.stats", "scipy.special", "matplotlib", "tensorflow", "orbax")
    program = f"""if True:
        import sys, flaxmnist.cli.train
        print(*sys.modules.keys() & {{*{later}}})"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, cwd=ROOT
    )
    assert (done.returncode, done.stdout.split()) == (0, [])


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_describes_itself(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert not stopped.value.code
    text = capsys.readouterr().out
    assert text.startswith(f"usage: flaxmnist {name} ")
    assert f"\n  flaxmnist {name}" in text
