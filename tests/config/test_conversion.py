"""Configurations from files, overrides and JSON, and back."""

import json
import os
import pathlib
import runpy

import jax
import jax.numpy as jnp
import pytest
from helpers import ROOT

from flaxmnist import config as configs
from flaxmnist.errors import UserError
from flaxmnist.training import loop
from flaxmnist.training.experiment import Experiment


def test_overrides_are_taken_in_every_form():
    config = configs.override(
        configs.load("mlp:smoke"),
        [
            ("num_epochs", "2.0"),
            ("model.hidden", "(64, 32)"),
            ("optimizer.learning_rate", "3e-4"),
            ("optimizer.warmup", "0.5 epochs"),
            ("log_every", "50"),
            ("patience", "none"),
            ("data.dir", "some/where"),
        ],
    )
    assert config.num_epochs == 2
    assert config.model.hidden == (64, 32)
    assert config.optimizer.learning_rate == 3e-4
    assert config.optimizer.warmup == "0.5 epochs"
    assert config.log_every == 50
    assert config.patience is None
    assert config.data.dir == os.path.abspath("some/where")
    assert configs.from_json(configs.to_json(config)) == config
    values = [("data.dir", pathlib.Path("some/where")), ("log_every", 50)]
    assert configs.override(config, values) == config
    steps = configs.override(configs.load("cnn"), [("num_steps", "7")])
    assert (steps.num_steps, steps.num_epochs) == (7, None)
    sgd = configs.override(
        configs.load("cnn"), [("optimizer.name", "sgd"), ("optimizer.momentum", "0.9")]
    )
    assert (sgd.optimizer.momentum, sgd.optimizer.nesterov) == (0.9, False)
    assert not hasattr(sgd.optimizer, "b1")
    # The default learning rate is that of the optimizer; another one is kept.
    base, changes = configs.make_config(num_steps=1), [("optimizer.name", "prodigy")]
    given = [("optimizer.learning_rate", "0.002")]
    rates = [
        configs.override(configs.override(base, first), changes).optimizer.learning_rate
        for first in ([], given)
    ]
    assert rates == [1.0, 0.002]
    assert configs.override(base, changes + given).optimizer.learning_rate == 0.002
    other = configs.override(configs.load("cnn"), [("model.name", "mlp")])
    mlp = configs.resolve(configs.make_config(num_steps=1, model={"name": "mlp"}))
    assert other.model == mlp.model


def test_a_dict_is_not_a_configuration(tmp_path):
    with pytest.raises(UserError, match=r"config={'seed': 1}: expected what make_conf"):
        loop.train_and_evaluate({"seed": 1}, tmp_path)


def test_lists_of_names_are_taken_in_every_form():
    config = configs.load("mlp:smoke")
    for text in ("norms, mistakes", "('norms', 'mistakes')", '["norms", "mistakes"]'):
        changed = configs.override(config, [("summaries", text)])
        assert changed.summaries == ("norms", "mistakes")
        assert configs.from_json(configs.to_json(changed)) == changed
    for text in ("()", "none"):
        assert configs.override(config, [("summaries", text)]).summaries == ()


def test_every_shipped_configuration_and_its_smoke_variant_load():
    models = {"cifar10": "convnet", "cnn": "cnn", "mlp": "mlp", "softmax": "softmax"}
    assert set(configs.shipped()) == set(models)
    for name, model in models.items():
        assert configs.load(name).model.name == model
        assert configs.load(f"{name}:smoke").data.source == "synthetic"


@pytest.mark.parametrize(
    "spec",
    [
        f"{name}{variant and ':'}{variant}"
        for name, path in configs.shipped().items()
        for variant in ("", *runpy.run_path(str(path))["VARIANTS"])
    ],
)
def test_every_shipped_variant_builds_with_the_documented_parameters(spec, synthetic):
    config = configs.override(configs.load(spec), {"mesh.data": 1})
    experiment = Experiment.build(config, synthetic)
    images = jnp.zeros((1, *synthetic.image_shape))
    made = jax.eval_shape(experiment.model.init, jax.random.key(0), images)
    count = sum(leaf.size for leaf in jax.tree.leaves(made["params"]))
    documented = {"cnn": 3_274_634, "cnn:tiny": 9_640, "cnn:accurate": 450_690}
    assert count == documented.get(spec, count)


def test_a_loaded_configuration_can_be_changed_and_is_checked_when_it_is_used():
    config = configs.load("cnn")
    config.num_epochs = 1
    config.optimizer.learning_rate = 1e-2
    resolved = configs.resolve(config)
    assert (resolved.num_epochs, resolved.optimizer.learning_rate) == (1, 1e-2)
    config.optimizer.lr = 1
    with pytest.raises(UserError, match=r"did you mean 'optimizer.learning_rate'\?"):
        configs.resolve(config)


@pytest.mark.parametrize(
    "path", (ROOT / "tests/fixtures/saved").glob("*/config.json"), ids=str
)
def test_a_saved_configuration_is_written_again_with_the_same_values(path):
    config = configs.from_json(path.read_bytes())
    assert configs.from_json(configs.to_json(config)) == config
    saved, now = json.loads(path.read_bytes()), json.loads(configs.to_json(config))
    # Options of other optimizers were saved as None.
    given = {key: one for key, one in saved["optimizer"].items() if one is not None}
    assert now["optimizer"].items() >= given.items()
    merged = {"optimizer": now["optimizer"], "data": now["data"] | saved["data"]}
    assert now == now | saved | merged


@pytest.mark.parametrize("values", [None, [], "mlp", 1])
def test_values_that_are_no_object_are_refused(values):
    with pytest.raises(ValueError, match="expected an object of options"):
        configs.from_dict(values)
    if values:
        with pytest.raises(UserError, match=r"model=.*: expected a group of options"):
            configs.from_dict({"num_steps": 1, "model": values})
