"""The public names: those that the documents use, and what they print."""

import importlib

import jax
import optax
import pytest
from helpers import ROOT, batch_of

import flaxmnist
from flaxmnist import MLP, Metrics, UserError, config, create_state, train_step
from flaxmnist.training import loop


def test_objects_print_as_one_line(synthetic):
    assert repr(synthetic) == (
        "Dataset(synthetic, synthetic: train 2,000, validation 500, test 500)"
    )
    assert repr(synthetic.test) == "Split(500 examples)"
    state = create_state(MLP(hidden=(4,)), optax.sgd(0.1))
    assert repr(state) == "TrainState(MLP, 3,190 parameters, step 0)"
    batch = batch_of(synthetic.train, 20)
    batch["label"][0] = 11
    trained, metrics = train_step(state, batch)
    assert "19 examples, loss 2." in repr(metrics)
    assert repr(metrics).endswith("1 invalid labels)")
    assert repr(state) == "TrainState(MLP, 3,190 parameters, without values)"
    assert repr(jax.eval_shape(lambda: trained)).endswith("without values)")
    assert repr(jax.eval_shape(Metrics.empty)) == "Metrics(without values)"


def test_a_run_is_trained_by_a_name_a_path_or_a_configuration(tmp_path):
    given = {
        "name": "softmax:smoke",
        "path": ROOT / "configs" / "softmax.py",
        "mapping": config.load("softmax:smoke"),
        "dataclass": config.resolve(config.load("softmax:smoke")),
    }
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            loop.Experiment, "build", lambda config, *_: seen.append(config) or 1 / 0
        )
        for one in given.values():
            with pytest.raises(ZeroDivisionError):
                flaxmnist.train_and_evaluate(one, tmp_path / "run")
    assert seen[0] == seen[2] == seen[3]
    assert seen[1] == config.resolve(config.load("softmax"))
    with pytest.raises(UserError, match="no configuration 'sotfmax'; did you mean"):
        flaxmnist.train_and_evaluate("sotfmax", tmp_path / "run")


def test_every_exception_is_public():
    from flaxmnist import errors

    raised = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, BaseException)
    }
    assert raised <= set(flaxmnist.__all__)


@pytest.mark.parametrize("name", ["models", "nn", "optim", "sharding"])
def test_a_public_module_of_core_is_imported_by_its_own_name(name):
    public = importlib.import_module(f"flaxmnist.{name}")
    inner = importlib.import_module(f"flaxmnist.core.{name}")
    assert getattr(flaxmnist, name) is public
    assert public.__all__ == inner.__all__
    assert all(getattr(public, one) is getattr(inner, one) for one in inner.__all__)
