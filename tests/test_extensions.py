"""The callables that a configuration names: found, checked and imported again."""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import flax.linen as nn
import numpy as np
import pytest

from flaxmnist import config as configs
from flaxmnist import data, extensions, signatures, user_code
from flaxmnist.cli import eval as eval_
from flaxmnist.cli import export, predict, report, train
from flaxmnist.core import models, optimizers
from flaxmnist.data import Dataset
from flaxmnist.errors import UserError
from flaxmnist.inference.saved_run import open_run
from flaxmnist.options import check
from flaxmnist.rundir import folder as workdirs
from flaxmnist.rundir import population, trust
from flaxmnist.rundir.changes import Change
from flaxmnist.rundir.history import History
from flaxmnist.rundir.manifest import with_checksum
from flaxmnist.rundir.varying import vary
from flaxmnist.runtime import signing
from flaxmnist.training import loop
from flaxmnist.training.experiment import Experiment
from flaxmnist.training.population import train_members
from flaxmnist.training.resume import begin


def example(
    data,
    count: int,
    rate: float = 1,
    mode: Literal["a", "b"] = "a",
    sizes: "Sequence[int]" = (3, 4),
    pair: tuple[int, str] = (1, "x"),
    limit: int | float | None = None,
    anything: Any = None,
    guess="x",
    function: Any = print,
    **more,
):
    """A callable of the user, which returns the values of its options."""
    return {name: value for name, value in locals().items() if name not in ("more",)}


@dataclasses.dataclass
class Unhashable:
    """A class whose instances compare by value and can change."""

    def __call__(self, logits, labels):
        return 0


UNHASHABLE = Unhashable()


class Example:
    """A class of the user, whose instance is called."""

    def __init__(self, gamma: float = 2.0):
        self.gamma = gamma

    def __call__(self, logits, labels):
        return self.gamma


def loss(logits, labels, *, gamma: float = 2.0):
    return gamma


POINT = extensions.ExtensionPoint(
    {"loss": loss, "class": Example}, filled=("logits", "labels", "data")
)


def test_options_are_read_from_a_signature():
    found = signatures.options_of(example, {"data"})
    defaults = {name: one.default for name, one in found.items()}
    assert defaults == {
        "count": signatures.REQUIRED,
        "rate": 1.0,
        "mode": "a",
        "sizes": (3, 4),
        "pair": (1, "x"),
        "limit": None,
        "anything": None,
        "guess": "x",
    }
    assert isinstance(defaults["rate"], float)
    types = {name: one.type for name, one in found.items()}
    given = {"count": 2.0, "sizes": [5], "pair": [1, "y"], "limit": 0.5, "guess": 3}
    given["anything"] = [1, ["a", None]]
    assert check("", given, types) == {
        "count": 2,
        "sizes": (5,),
        "pair": (1, "y"),
        "limit": 0.5,
        "guess": "3",
        "anything": (1, ("a", None)),
    }


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("count", None, "a whole number"),
        ("count", 1.5, "a whole number"),
        ("rate", "x", "a number"),
        ("rate", float("nan"), "a number"),
        ("sizes", (1, "x"), "a tuple of any number of values, each a whole number"),
        ("pair", (1,), "a tuple of 2 values, each a whole number, a text"),
        ("limit", "x", "a whole number, or a number, or None$"),
        ("anything", {"a": 1}, "None, a number, a text, True, False, or a tuple"),
    ],
)
def test_an_option_of_another_type_is_refused(name, value, expected):
    types = {key: one.type for key, one in signatures.options_of(example).items()}
    with pytest.raises(UserError, match=rf"{name}=.*: expected {expected}"):
        check("", {name: value}, types)


def test_a_parameter_that_no_configuration_can_hold_needs_a_default():
    def takes_a_function(function: type):
        return function

    with pytest.raises(UserError, match=r"requires 'function', which a configuration"):
        signatures.options_of(takes_a_function)
    assert signatures.options_of(takes_a_function, {"function"}) == {}


def test_callables_are_built_or_bound_with_their_own_options():
    spec = f"{__name__}:example"
    convert = POINT.convert
    assert convert(loss) == convert("loss") == "loss"
    assert convert(example) == convert(spec) == spec
    built = POINT.build(spec, {"count": 3, "gamma": 1}, data="d", unknown=1)
    assert (built["count"], built["data"], built["rate"]) == (3, "d", 1)
    bound = POINT.bind("loss", {"gamma": 3.0})
    assert bound(1, labels=2) == 3.0
    assert bound == POINT.bind("loss", {"gamma": 3.0}) != POINT.bind("loss", {})
    assert hash(bound) == hash(POINT.bind("loss", {"gamma": 3.0}))
    assert POINT.bind("class", {"gamma": 4.0})(1, 2) == 4.0
    assert POINT.bind(spec, {"count": 1}, data="d", unknown=1)()["data"] == "d"
    with pytest.raises(UserError, match=r"example: TypeError: .*'count'"):
        POINT.build(spec, {}, data=1)
    assert POINT.users("gamma") == ["loss", "class"]


def test_an_option_may_name_several_callables():
    several, spec = extensions.Several(POINT), f"{__name__}:example"
    assert several.convert(f"loss, {spec},loss") == ("loss", spec)
    assert several.convert(Example) == ("class",)
    assert several.convert(None) == ()
    assert several.specs(["loss", spec]) == several.specs(f"loss, {spec}") == [spec]
    assert several.specs({spec: 1}) == POINT.specs(spec) == [spec]
    assert POINT.specs("loss") == POINT.specs([spec]) == several.specs(1) == []
    found = user_code.load(spec)
    assert (found.callable, found.file) == (example, __file__)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("losss", r" is unknown; did you mean 'loss'"),
        ("my.loss", r'is unknown; write your own as "my:loss"'),
        (7, r" is unknown\. Valid names: class, loss"),
        (lambda logits: logits, r" cannot be imported again by its name; expected"),
        ("nowhere.at_all:f", r"the module 'nowhere.at_all' was not found; run in"),
        ("nowhere.py:f", r"nowhere.py does not exist; give its path"),
        (":f", r'expected "package.module:name" or "file.py:name"'),
        (f"{__name__}:exampel", r"has no 'exampel'; did you mean 'example'"),
        (f"{__name__}:__name__", r"is 'test_extensions'; expected a class or a fun"),
        (f"{__name__}:UNHASHABLE", r"has no hash; expected .* a frozen dataclass"),
        ("os:system", r"is part of Python itself"),
        ("antigravity:geohash", r"is part of Python itself"),
        (f"{__name__}:sys.exit", r"is part of Python itself"),
        ("__main__:Net", r"was defined in another program or notebook"),
    ],
)
def test_a_callable_that_cannot_be_used_is_refused(value, message):
    with pytest.raises(UserError, match=message):
        check("", {"loss": value}, {"loss": POINT})
    assert "antigravity" not in sys.modules  # Its import opens a browser.


def wave(learning_rate, total_steps):
    raise NotImplementedError


def scaled_sgd(learning_rate, total_steps):
    raise NotImplementedError


def test_options_that_change_with_the_length_of_the_run_are_known():
    def stretched(**options):
        return optimizers.stretched({"name": "adam", "schedule": "constant"} | options)

    assert stretched() == stretched(schedule="exponential") == ""
    assert stretched(schedule="cosine") == "cosine schedule"
    own = {"schedule": f"{__name__}:wave"}
    assert stretched(**own) == f"{__name__}:wave schedule"
    own = {"name": f"{__name__}:scaled_sgd"}
    assert stretched(**own) == f"optimizer {__name__}:scaled_sgd"
    with pytest.raises(UserError, match=r"optimizer.schedule=None is unknown"):
        configs.make_config(num_steps=1, optimizer={"schedule": None})


def test_a_class_of_a_notebook_is_used_in_the_same_process(monkeypatch):
    class Net(nn.Module):
        width: int = 3

    Net.__module__, Net.__qualname__ = "__main__", "Net"
    with pytest.raises(UserError, match="defined in another program or notebook"):
        POINT.convert(Net)
    monkeypatch.setattr(sys.modules["__main__"], "Net", Net, raising=False)
    assert POINT.convert(Net) == "__main__:Net"
    assert user_code.load("__main__:Net").sha256 == ""
    assert models.build(Net, width=4) == Net(width=4)


def not_a_model(of: int = 1):
    return of


def test_what_is_no_model_is_refused():
    with pytest.raises(UserError, match=r"returned 1; expected a flax.linen module"):
        models.build(not_a_model)
    with pytest.raises(UserError, match=r"has the parameter 'of', which cannot be an"):
        configs.make_config(num_steps=1, model={"name": not_a_model})
    with pytest.raises(UserError, match=r"unknown option 'model.off'; did you mean"):
        models.build(not_a_model, off=1)


def takes_placement(placement: str):
    raise NotImplementedError


def test_a_parameter_with_the_name_of_an_option_is_refused():
    with pytest.raises(UserError, match=r"the parameter 'placement', which cannot be"):
        configs.make_config(num_steps=1, data={"source": takes_placement})


def squares(split_seed, side: int, count: int = 20):
    """A data source of the user, which returns squares of two sizes."""
    labels = np.random.default_rng(split_seed).integers(2, size=count)
    images = np.zeros((count, side, side), np.uint8)
    images[labels == 1, 1:-1, 1:-1] = 255
    train, test = (images, labels), (images[:9], labels[:9])
    return Dataset.from_arrays(train, test, name="squares", validation=test)


def test_data_come_from_a_function_of_the_user():
    options = {"source": squares, "side": 5, "count": 30}
    config = configs.resolve(configs.make_config(num_steps=1, data=options))
    values = configs.as_dict(config.data)
    del values["placement"]
    dataset = data.load(**values)
    assert (dataset.source, dataset.name) == (config.data.source, "squares")
    assert (dataset.image_shape, len(dataset.train)) == ((5, 5, 1), 30)
    # The place of the data may change, and so may the options of the place.
    other = configs.override(config, [("data.count", 31)])
    assert configs.differences(config, other) == []
    with pytest.raises(UserError, match=r"'data.sid'; did you mean 'data.side'"):
        configs.override(config, [("data.sid", 31)])
    with pytest.raises(UserError, match=r"data.side is missing; expected a whole num"):
        configs.make_config(num_steps=1, data={"source": squares})
    with pytest.raises(UserError, match=r"returned 1; expected a Dataset, such as"):
        data.load(source=f"{__name__}:not_a_model")
    with pytest.raises(UserError, match=r"unknown option 'data.sides'; did you mean"):
        data.load(source=f"{__name__}:squares", sides=1)
    with pytest.raises(UserError, match=r"validation_share=0\.2 has no effect on this"):
        data.load(source=f"{__name__}:squares", side=5, validation_share=0.2)


def test_a_callable_keeps_its_options_under_another_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "loss_of_this_test.py:power"
    code = "def power(logits, labels, *, gamma: float = 2.0):\n    return logits\n"
    (tmp_path / "loss_of_this_test.py").write_text(code)
    given = {"name": name, "gamma": 3.0}
    config = configs.resolve(configs.make_config(num_steps=1, loss=given))
    made = user_code.load(name).callable
    for other in (name, f"{tmp_path}/{name}", made):
        assert configs.override(config, {"loss.name": other}) == config
    changed = configs.override(config, {"loss.name": made, "loss.gamma": 4.0})
    assert changed.loss.gamma == 4.0
    assert configs.override(config, {"loss.name": "focal"}).loss.gamma == 2.0


def test_an_error_in_the_code_of_the_user_names_its_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_code_of_test.py").write_text("import os\n1 / 0\n")
    (tmp_path / "bad.py").write_text("import no_such_module\n")
    (tmp_path / "deep.py").write_text("import json\n\njson.loads('{')\n")
    jaxs = "from jax import numpy\nnumpy.ones(2) @ numpy.ones(3)\n"
    (tmp_path / "wrong_shapes.py").write_text(jaxs)
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "installed.py").write_text("\n1 / 0\n")
    for spec, message in (
        ("own_code_of_test:f", r"own_code_of_test.py, line 2: ZeroDivisionError"),
        ("bad.py:f", r"bad.py, line 1: ModuleNotFoundError: .*no_such_module"),
        ("deep.py:f", r"deep.py, line 3: JSONDecodeError: Expecting property"),
        ("wrong_shapes.py:f", r"wrong_shapes.py, line 2: TypeError: "),
        ("site-packages/installed.py:f", r"installed.py, line 2: ZeroDivisionError"),
    ):
        path = list(sys.path)
        with pytest.raises(UserError, match=message):
            user_code.load(spec)
        assert sys.path == path
        assert str(tmp_path / "bad.py") not in sys.modules


def test_no_code_inside_a_run_directory_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("inside_of_test.py", "file.py"):
        (tmp_path / name).write_text("raise AssertionError\n")
    user_code.refuse_inside(tmp_path)
    for spec in ("inside_of_test:f", "file.py:f", f"{tmp_path}/file.py:f"):
        with pytest.raises(UserError, match="inside the run directory, from which"):
            user_code.load(spec)


NETS = """
import flax.linen as nn


class Net(nn.Module):
    width: int
    depth: int = 1
    image_shape: tuple = ()
    num_classes: int = 10
    dtype: object = None

    @nn.compact
    def __call__(self, images, *, train):
        assert images.shape[1:] == self.image_shape
        x = images.reshape(images.shape[0], -1).astype("float32") / 255
        for _ in range(self.depth):
            x = nn.relu(nn.Dense(self.width, dtype=self.dtype)(x))
        return nn.Dense(self.num_classes)(x)
"""
CONFIG = """
import own_nets
from flaxmnist.config import make_config


class Wide(own_nets.Net):
    width: int = 9


def get_config(arg=None):
    name = Wide if arg == "wide" else own_nets.Net
    return make_config(
        num_steps=2,
        batch_size=20,
        data={"source": "synthetic"},
        mesh={"data": 1},
        report=False,
        model={"name": name, "width": 5},
    )
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A directory with a module, a configuration file and a run of two steps."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "own_nets.py").write_text(NETS)
    (folder / "my.py").write_text(CONFIG)
    flags = [f"--config={folder}/my.py", "--config.model.depth=2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLAXMNIST_CACHE_DIR", str(folder / "cache"))
        assert train.main([*flags, f"--workdir={folder / 'run'}"]) == 0
    return folder


@pytest.fixture
def run(project, tmp_path, monkeypatch):
    """A copy of the run, in a process that has not imported its module yet."""
    for name in ("own_nets", f"{project}/my.py"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(user_code, "_folders", [])
    monkeypatch.setattr(trust, "_permitted", {})
    monkeypatch.setenv("FLAXMNIST_CACHE_DIR", str(project / "cache"))
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(project / "run", tmp_path / "run")


def test_a_run_of_a_model_of_the_user_is_resumed_and_used(project, run, capsys):
    (record,) = json.loads((run / "extensions.json").read_text())
    source = (project / "own_nets.py").read_bytes()
    assert len(record.pop("signature")) == 64
    assert record == {
        "option": "model.name",
        "options": {"name": "own_nets:Net", "width": 5, "depth": 2},
        "spec": "own_nets:Net",
        "file": str(project / "own_nets.py"),
        "folder": str(project),
        "sha256": hashlib.sha256(source).hexdigest(),
    }
    flags = configs.flags_of(workdirs.saved_config(run))
    pairs = [flag.removeprefix("--config.").split("=", 1) for flag in flags[1:]]
    base = configs.load(flags[0].removeprefix("--config="))
    again = configs.override(base, pairs)
    assert configs.to_json(again) == (run / "config.json").read_text()
    assert (again.model.width, again.model.depth) == (5, 2)

    assert train.main([f"--workdir={run}", "--config.num_steps=4"]) == 0
    assert "resumes at step 2 of 4" in capsys.readouterr().out
    for command, flags in ((eval_, []), (report, []), (predict, ["--split=test"])):
        assert command.main([f"--workdir={run}", *flags]) == 0
    assert export.main([f"--workdir={run}", "--format=stablehlo"]) == 0
    assert capsys.readouterr().err == ""
    assert "--config.model.name=own_nets:Net" in (run / "report.html").read_text()
    assert (run / "export/stablehlo/model.stablehlo").exists()
    assert export.main([f"--workdir={run}", "--format=safetensors"]) == 0
    described = json.loads((run / "export/safetensors/config.json").read_text())
    assert described["architecture"] == "own_nets:Net"
    # All that the class takes, with what flaxmnist passes.
    options = {"width": 5, "depth": 2, "num_classes": 10, "image_shape": [28, 28, 1]}
    assert described["options"] == options
    assert export.main([f"--workdir={run}", "--format=numpy"]) == 2
    message = (
        "numpy supports the models SoftmaxRegression, MLP, CNN, ConvNet, not Net; use"
    )
    assert message in capsys.readouterr().err
    wanted = ["--config=cnn", "--config.model.width=3", "--config.model.depht=3"]
    wanted += ["--config.model.name=own_nets:Net", "--dry_run"]
    assert train.main(wanted) == 2
    assert "'model.depht'; did you mean 'model.depth'?" in capsys.readouterr().err


def test_a_missing_module_is_named(project, run, tmp_path, capsys):
    moved = (project / "own_nets.py").rename(tmp_path / "own_nets_elsewhere.py")
    try:
        assert eval_.main([f"--workdir={run}"]) == 2
        error = capsys.readouterr().err
        assert f"model.name='own_nets:Net' of {project}/own_nets.py, which" in error
        assert "add that directory to PYTHONPATH" in error
        # Its code is not run from the run directory.
        shutil.copy(moved, run / "own_nets.py")
        os.chdir(run)
        assert eval_.main([f"--workdir={run}"]) == 2
        assert "inside the run directory, from which no code" in capsys.readouterr().err
    finally:
        moved.rename(project / "own_nets.py")


def test_a_changed_source_stops_a_resumption_and_warns_otherwise(
    project, run, tmp_path, monkeypatch, capsys
):
    code = tmp_path / "code"
    code.mkdir()
    (code / "own_nets.py").write_text(other := NETS + "# Changed.\n")
    monkeypatch.syspath_prepend(code)
    user_code.load("own_nets:Net")
    assert train.main([f"--workdir={run}", "--config.num_steps=4"]) == 2
    changed = f"the source in {code}/own_nets.py (it was {project}/own_nets.py) has ch"
    error = capsys.readouterr().err
    assert changed in error
    # The same message is that of a member of a population, which has no such flag.
    assert "or, for a single run, add --allow_change" in error
    assert predict.main([f"--workdir={run}", "--split=test"]) == 0
    output = capsys.readouterr()
    assert (output.out + output.err).count(changed) == 1
    flags = [f"--workdir={run}", "--config.num_steps=4"]
    assert train.main([*flags, "--allow_change"]) == 0
    assert f"{changed}anged since the run was trained; the run continues" in (
        capsys.readouterr().err
    )
    (change,) = workdirs.saved_summary(run).changes
    sources = [hashlib.sha256(text.encode()).hexdigest()[:12] for text in (NETS, other)]
    assert change == Change(2, {"source of own_nets:Net": tuple(sources)})
    # The code that this process imported counts, not what the file contains now.
    (code / "own_nets.py").write_text(NETS)
    assert train.main(flags) == 0


def test_a_class_of_a_configuration_file_counts_alone(project, run):
    config = configs.resolve(configs.load(f"{project}/my.py:wide"))
    assert config.model.name == f"{project}/my.py:Wide"
    before = user_code.load(config.model.name).sha256
    path = project / "my.py"
    path.write_text(CONFIG.replace("num_steps=2", "num_steps=3"))
    configs.load(str(path))
    assert user_code.load(config.model.name).sha256 == before
    path.write_text(CONFIG.replace("width: int = 9", "width: int = 8"))
    configs.load(str(path))
    assert user_code.load(config.model.name).sha256 != before
    path.write_text(CONFIG)


def edit(path, change):
    """Changes an object in a JSON file, and its checksum if it is of a checkpoint."""
    content = json.loads(path.read_text())
    change(content)
    if "checksum" in content:
        del content["checksum"]
        content = with_checksum(content)
    path.write_text(json.dumps(content))


@pytest.fixture
def strange(monkeypatch, tmp_path):
    """The name of a function whose module must not be imported."""
    (tmp_path / "strange_of_test.py").write_text("def f():\n    pass\n")
    yield "strange_of_test:f"
    assert "strange_of_test" not in sys.modules


def test_no_option_of_a_run_directory_imports_code(run, strange):
    for name in configs.flat(workdirs.saved_config(run)):
        group, _, key = name.rpartition(".")
        for value in (strange, f"top5,{strange}", [strange], {strange: 1}):

            def change(content, group=group, key=key, value=value):
                (content[group] if group else content)[key] = value

            kept = (run / "config.json").read_bytes()
            edit(run / "config.json", change)
            with contextlib.suppress(UserError):  # Some options accept any text.
                workdirs.saved_config(run)
            (run / "config.json").write_bytes(kept)


def test_code_that_the_user_did_not_name_is_refused_and_named(
    project, run, strange, capsys
):
    def name(content):
        content.get("config", content)["loss"] = {"name": strange, "file": "x\n"}

    def move(content):
        content[0]["folder"] = str(run.parent)

    def unsign(content):
        del content[0]["signature"]  # As in runs of older versions.

    def widen(content):
        content["model"]["width"] = 6

    listed = f"loss.name='{strange}' with file='x\\n'"
    checkpoint = "checkpoints/2/record/metadata"
    for file, change, found in (
        ("config.json", name, listed),
        (checkpoint, name, listed),
        # The user named this class with another width, and in another directory.
        ("config.json", widen, "model.name='own_nets:Net' with depth=2, width=6"),
        ("extensions.json", move, f"first searched for in '{run.parent}'"),
        ("extensions.json", unsign, f"width=5, first searched for in '{project}'"),
    ):
        kept = (run / file).read_bytes()
        edit(run / file, change)
        trust._permitted.clear()
        user_code._folders.clear()
        with pytest.raises(UserError, match="--trust_code") as error:
            open_run(run)
        assert found in str(error.value)
        assert str(run.parent) not in user_code._folders
        (run / file).write_bytes(kept)
    edit(run / "summary.json", name)
    workdirs.saved_config(run)
    assert workdirs.saved_summary(run) is None
    with pytest.raises(UserError, match="contains no finished run"):
        History.read(run)
    assert report.main([f"--workdir={run}"]) == 0


def test_a_run_of_another_user_is_opened_if_its_code_is_trusted(
    project, run, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("FLAXMNIST_CACHE_DIR", str(tmp_path / "cache"))
    flags = [f"--workdir={run}", "--config.num_steps=3"]
    assert train.main(flags) == 2
    error = capsys.readouterr().err
    assert "names code that you did not name on this machine" in error
    assert "add --trust_code, or trust_code=True in open_run" in error
    assert not (tmp_path / "cache").exists()
    assert "own_nets" not in sys.modules
    assert open_run(run, trust_code=True).step == 2
    trust._permitted.clear()
    # Whoever names the code trusts it.
    config = configs.load(f"{project}/my.py")
    trust.permit(configs.resolve(configs.override(config, {"model.depth": 2})))
    assert workdirs.saved_config(run) is not None
    trust._permitted.clear()
    # A run that resumes with this flag is this user's from then on.
    assert train.main([*flags, "--trust_code"]) == 0
    trust._permitted.clear()
    assert workdirs.saved_config(run) is not None


def test_the_parameters_of_an_own_run_need_no_flag(project, run):
    config = configs.resolve(configs.load(f"{project}/my.py"))
    changes = {"init_from": str(run), "model.depth": 2, "model.width": 5}
    experiment = Experiment.build(configs.override(config, changes))
    trust._permitted.clear()
    assert begin(experiment).step == 0


def test_a_finished_run_is_signed_by_its_user(run, tmp_path, monkeypatch):
    monkeypatch.setenv("FLAXMNIST_CACHE_DIR", str(tmp_path / "cache"))
    for flags, code in (([], 2), (["--trust_code"], 0), ([], 0)):
        trust._permitted.clear()
        assert train.main([f"--workdir={run}", *flags]) == code


def test_runs_of_another_source_are_another_recipe(run):
    one = History.read(run)
    summary = dataclasses.replace(one.summary, sources={"own_nets:Net": "0"})
    assert one.recipe == History.read(run).recipe
    assert dataclasses.replace(one, summary=summary).recipe != one.recipe


def test_options_in_a_list_of_members_are_signed(project, run, tmp_path):
    config, workdir = workdirs.saved_config(run), tmp_path / "p"
    members = vary(config, sweep={"model.width": [5, 6]})
    own = [configs.override(config, one.options) for one in members]
    with workdirs.locked(workdir) as rundir:
        rundir.prepare(())
        rundir.write_config(own[0], *own)
        rundir.write(population.FILE, population.to_json(members))
    trust._permitted.clear()
    trust.permit_signed(workdir)
    for each in own:
        trust.check(configs.as_dict(each), workdir)
    edit(
        workdir / population.FILE,
        lambda c: c["members"][1]["options"].update({"model.width": 7}),
    )
    trust._permitted.clear()
    with pytest.raises(UserError, match="names code that you did not name") as error:
        train_members(config, workdir)
    assert "width=7" in str(error.value)
    (workdir / members[0].name).mkdir()
    (workdir / members[0].name / "summary.json").touch()
    (workdir / members[1].name).mkdir()
    (workdir / members[1].name / "summary.json").touch()
    with pytest.raises(UserError, match="width=7"):
        open_run(workdir)
    shutil.copy(run / "config.json", workdir / members[0].name)
    edit(
        workdir / members[0].name / "config.json", lambda c: c["model"].update(width=8)
    )
    trust._permitted.clear()
    workdirs.permit_all(workdir)
    widths = {json.loads(key)[2]["width"] for key in trust._permitted}
    assert widths == {5, 7, 8}


def test_a_population_of_another_user_resumes_if_its_code_is_named(
    project, run, tmp_path, monkeypatch
):
    config, workdir = configs.resolve(configs.load(f"{project}/my.py")), tmp_path / "p"
    members = vary(config, sweep={"model.width": [6]})
    with workdirs.locked(workdir) as rundir:
        rundir.prepare(())
        rundir.write_config(configs.override(config, members[0].options))
        rundir.write(population.FILE, population.to_json(members))
    trust._permitted.clear()
    monkeypatch.setenv("FLAXMNIST_CACHE_DIR", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="names code that you did not name"):
        train_members(config, workdir)
    trained = train_members(config, workdir, members)
    assert list(trained.members) == [members[0].name]


def test_a_key_is_made_once_and_is_private(tmp_path, monkeypatch):
    monkeypatch.setenv("FLAXMNIST_CACHE_DIR", str(tmp_path / "cache"))
    assert not signing.is_signed("text", "")
    assert not (tmp_path / "cache").exists()
    with ThreadPoolExecutor() as pool:
        (signature,) = set(pool.map(signing.sign, ["text"] * 20))
    assert signing.is_signed("text", signature)
    for text, other in (("texts", signature), ("text", "\ud800é")):
        assert not signing.is_signed(text, other)
    (key,) = (tmp_path / "cache").iterdir()
    assert key.stat().st_mode & 0o777 == 0o600
    content = key.read_bytes()
    for other, mode in ((content, 0o640), (b"", 0o600), (content * 2, 0o600)):
        key.write_bytes(other)
        key.chmod(mode)
        assert not signing.is_signed("text", signature)
        with pytest.raises(UserError, match=r"is not a private key; .* Remove it") as e:
            signing.sign("text")
        assert signing.key_problem() == str(e.value)
    key.unlink()
    assert signing.sign("text") != signature


def test_a_key_that_cannot_be_written_leaves_no_file(tmp_path, monkeypatch):
    def no_space(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setenv("FLAXMNIST_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(UserError, match="No space left on device"):
        signing.sign("text")
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_a_key_is_trained_and_says_so(run, tmp_path, monkeypatch, capsys):
    config = workdirs.saved_config(run)
    (tmp_path / "file").touch()
    monkeypatch.setenv("FLAXMNIST_CACHE_DIR", str(tmp_path / "file"))
    with workdirs.locked(run) as rundir:
        rundir.write_config(config)
    said = " ".join(capsys.readouterr().err.split())
    assert "Set FLAXMNIST_CACHE_DIR to a writable directory; until then, op" in said
    trust._permitted.clear()
    with pytest.raises(UserError, match=r"--trust_code[\s\S]*/key-.* cannot be read"):
        workdirs.saved_config(run)


def broken(**arguments):
    raise ArithmeticError("a mistake of the user")


def broken_in_a_trace(logits, labels):
    raise ArithmeticError("a mistake of the user")


@pytest.mark.parametrize(
    ("option", "value"), [("model", broken), ("loss", broken_in_a_trace)]
)
def test_a_failure_of_the_user_code_leaves_no_run_directory(option, value, tmp_path):
    options = {"model": {"name": "softmax"}, "batch_size": 5, "mesh": {"data": 1}}
    options[option] = {"name": value}
    config = configs.make_config(num_steps=1, **options)
    arrays = np.zeros((10, 4, 4), np.uint8), np.arange(10, dtype=np.uint8)
    dataset = Dataset.from_arrays(arrays, arrays, validation=arrays)
    error = UserError if option == "model" else ArithmeticError
    with pytest.raises(error, match="a mistake of the user"):
        loop.train_and_evaluate(config, tmp_path / "a" / "run", data=dataset)
    assert not (tmp_path / "a").exists()
