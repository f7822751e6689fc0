"""The declarations of the options: complete, immutable, checked once, documented."""

import dataclasses

import flax.linen as nn
import pytest
from helpers import ROOT, tiny_config

from flaxmnist import config as configs
from flaxmnist import options
from flaxmnist.config import conversion, groups, reference, schema
from flaxmnist.config.group import Group
from flaxmnist.core import models, optimizers, sharding
from flaxmnist.data import datasets
from flaxmnist.errors import UserError
from flaxmnist.rundir import folder
from flaxmnist.training.experiment import Experiment


def unchanged(keys, images):
    return images


BASE = configs.resolve(configs.make_config(num_steps=5))
# Each option accepts one of these, other than its value in BASE.
OTHER_VALUES = (7, 0.5, True, False, (7,), (3, 3), "2 epochs", "norms, filters")
OTHER_VALUES += (
    "sgd",
    "cosine",
    "bfloat16",
    "rollback",
    "idx",
    "host",
    "tanh",
    "VALID",
)
OTHER_VALUES += (unchanged, "glorot_uniform", "average", "train, validation")
OTHER_VALUES += ("logits", "mlp", "focal")
# Options of the optimizer that are valid only together with these.
REQUIRED = {
    "momentum": {"name": "sgd"},
    "nesterov": {"name": "sgd", "momentum": 0.9},
    "weight_decay": {"name": "adamw"},
    "decay_rate": {"schedule": "exponential"},
    "schedule_power": {"schedule": "polynomial_schedule"},
}


def changed(name):
    """Returns BASE with another valid value of an option."""
    for value in OTHER_VALUES:
        values = configs.as_dict(BASE)
        group, _, last = name.rpartition(".")
        if name in (f"{group}.name" for group in schema.GROUPS if group != "data"):
            values[group] = {}
        if name == "num_epochs":
            values["num_steps"] = None
        if name == "optimizer.decay_rate":
            values["optimizer"] |= REQUIRED[last]
        (values[group] if group else values)[last] = value
        try:
            config = configs.from_dict(values)
        except UserError:
            continue
        if configs.flat(config)[name] != configs.flat(BASE)[name]:
            return config
    raise AssertionError(f"no other value of {name}")


@pytest.mark.parametrize("name", configs.flat(BASE))
def test_a_resumed_run_may_change_exactly_the_mutable_options(name):
    (option,) = [one for path, one, _ in schema.walk(BASE) if path == name]
    config = changed(name)
    found = [text.partition(":")[0] for text in configs.differences(BASE, config)]
    if option.mutable:
        assert found == []
        folder.check_same(BASE, config)
    else:
        assert name in found
        with pytest.raises(UserError, match=name):
            folder.check_same(BASE, config)


def test_every_field_is_an_option_with_help_or_a_group():
    names = {entry.name for entry in reference.entries()}
    assert names == schema.declarations(listed=True).keys()
    for model in models.MODELS:
        config = dataclasses.replace(BASE, model=groups.ModelConfig.of({"name": model}))
        parts = [getattr(config, group) for group in schema.GROUPS]
        for one in (config, *parts):
            fields = {field.name for field in dataclasses.fields(one)}
            if one is config:
                fields -= schema.GROUPS.keys()
            assert fields == options.declared(type(one)).keys()
        for path, option, _ in schema.walk(config):
            assert path in names
            assert option.help[0].isupper()
            assert option.help.endswith(".")


def test_options_of_the_core_are_options_of_a_configuration():
    for cls, table in (
        (groups.OptimizerConfig, optimizers.OPTIONS),
        (groups.DataConfig, datasets.OPTIONS),
        (groups.MeshConfig, sharding.OPTIONS),
    ):
        declared = options.declared(cls)
        for name, type in table.items():
            assert declared[name].type is type


def test_a_configuration_cannot_be_assigned_to():
    for one, name in ((BASE, "seed"), (BASE.model, "hidden"), (BASE.data, "dir")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(one, name, 1)
    hash(BASE)


def test_a_replaced_value_is_checked_and_canonical():
    assert dataclasses.replace(BASE, batch_size=64.0).batch_size == 64
    with pytest.raises(UserError, match=r"batch_size=0: expected a whole number"):
        dataclasses.replace(BASE, batch_size=0)
    with pytest.raises(UserError, match=r"model.pool='mean' is unknown"):
        dataclasses.replace(BASE.model, pool="mean")
    with pytest.raises(UserError, match=r"num_epochs=1 and num_steps=5: expected one"):
        dataclasses.replace(BASE, num_epochs=1)
    with pytest.raises(UserError, match=r"mesh=\{'data': 1\}: expected a MeshConfig"):
        dataclasses.replace(BASE, mesh={"data": 1})


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        ({"momentum": 0.9}, r"momentum has no effect .*='adam'; .* to be 'sgd' or"),
        ({"weight_decay": 0.1}, r"weight_decay has no effect .* to be 'adamw' or"),
        ({"schedule_power": 2}, r"power has no effect .* to be 'polynomial_schedule'"),
        ({"schedule": "polynomial_schedule"}, r"requires optimizer.schedule_power"),
        ({"schedule": "warmup_constant_schedule"}, r"requires optimizer.warmup, such"),
        ({"name": "rprop", "warmup": 5}, r"'rprop' requires a constant learning rate"),
        ({"decay_rate": 0.9}, r"decay_rate=0.9 has no effect .*='constant'; expected"),
        ({"name": "sgd", "nesterov": True}, r"nesterov requires optimizer.momentum"),
    ],
)
def test_optimizer_options_that_conflict_are_found_with_the_configuration(
    optimizer, message
):
    with pytest.raises(UserError, match=message):
        configs.make_config(num_steps=1, optimizer=optimizer)
    for option in optimizer.keys() & REQUIRED.keys():
        configs.make_config(num_steps=1, optimizer=optimizer | REQUIRED[option])


def test_a_configuration_is_checked_once(monkeypatch):
    config = tiny_config()
    checked = []
    check = Group.__post_init__

    def count(group):
        checked.append(group)
        check(group)

    monkeypatch.setattr(Group, "__post_init__", count)
    assert configs.resolve(config) is config
    Experiment.build(config)
    assert checked == []
    assert configs.resolve(configs.make_config(num_steps=5)) == BASE
    assert len(checked) == 2 * len([BASE, *schema.GROUPS])


class Wide(models.MLP):
    """A model that changes an inherited default and declares an option of its own."""

    hidden: object = (7,)
    gain: float = options.option(1.0, options.real(0), "Factor of the logits.")


def test_a_model_of_ones_own_brings_its_options(monkeypatch):
    monkeypatch.setitem(models.MODELS, "wide", Wide)
    config = configs.override(BASE, [("model.name", "wide"), ("model.gain", "2")])
    assert (config.model.hidden, config.model.gain) == ((7,), 2.0)
    assert isinstance(build_model(config), Wide)
    with pytest.raises(UserError, match=r"model.gain=-1: expected a number, 0 or more"):
        configs.override(config, [("model.gain", "-1")])
    with pytest.raises(UserError, match=r"model.gain has no effect .* to be 'wide'"):
        configs.override(BASE, [("model.gain", "1")])


def build_model(config) -> nn.Module:
    return models.build(**configs.as_dict(config.model))


def test_the_reference_page_is_up_to_date():
    page = ROOT / "docs/reference/options.md"
    command = "python -m flaxmnist.config > docs/reference/options.md"
    assert page.read_text() == reference.markdown(), f"run {command}"


def test_help_lists_every_option_in_lines_that_fit_a_terminal():
    lines = configs.help_text().splitlines()
    assert max(map(len, lines)) <= 100
    for entry in reference.entries():
        (line,) = [line for line in lines if f"--config.{entry.name} " in f"{line} "]
        assert entry.default in line
        assert line.startswith("*") == entry.mutable


UNKNOWN = {
    "lr": "'optimizer.learning_rate'",
    "learning_rate": "'optimizer.learning_rate'",
    "optimizer.lr": "'optimizer.learning_rate'",
    "optimizer.learnin_rate": "'optimizer.learning_rate'",
    "optimiser.name": "'optimizer.name'",
    "hidden": "'model.hidden'",
    "model.dropout": "'model.dropout_rate'",
    "name": "'model.name' or 'optimizer.name' or 'loss.name' or 'data.name' or "
    "'augment.name'",
    "optimizer.batch_size": "'batch_size'",
    "sed": "'seed'",
    "modell": "'model' or 'mesh.model'",
}


@pytest.mark.parametrize(("name", "meant"), UNKNOWN.items())
def test_an_unknown_option_hints_at_the_known_one(name, meant):
    with pytest.raises(UserError) as raised:
        configs.override(BASE, [(name, "1")])
    assert str(raised.value) == f"unknown option {name!r}; did you mean {meant}?"


def test_an_unknown_option_like_no_other_lists_its_group():
    valid = "mesh.data, mesh.model, mesh.fsdp, mesh.devices"
    with pytest.raises(UserError, match=f"'mesh.zzz'; expected one of {valid}$"):
        configs.override(BASE, [("mesh.zzz", "1")])
    with pytest.raises(UserError, match="'zzz'; expected one of model, optimizer"):
        configs.make_config(num_steps=1, zzz=1)
    with pytest.raises(
        UserError, match=r"model.hidden has no effect .* 'mlp' or 'cnn'"
    ):
        configs.make_config(num_steps=1, model={"name": "softmax", "hidden": 3})


def test_similar_names_are_those_of_the_given_group_first():
    known = ["a.size", "mesh.size", "mesh.side"]
    assert conversion._similar("mesh.siz", known) == ["mesh.size"]
