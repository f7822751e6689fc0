"""Meshes: what is split, that it stays split, and that nothing else depends on it."""

import functools
import json
import re

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from helpers import assert_identical, batch_of, tiny_config
from jax import lax
from jax.sharding import AxisType, PartitionSpec

from flaxmnist.core import models, sharding, steps
from flaxmnist.core.metrics import Metrics
from flaxmnist.core.state import abstract_state, create_state
from flaxmnist.data import DeviceFeed
from flaxmnist.errors import UserError
from flaxmnist.inference.saved_run import open_run
from flaxmnist.rundir.checkpoints import Checkpoints
from flaxmnist.training import loop, resume
from flaxmnist.training.experiment import Experiment

MODEL = models.MLP(hidden=(64, 16), batch_norm=True, dropout_rate=0.2)
# Adam's first updates are the sign of a gradient, also where that is rounding noise:
# a larger epsilon than its own takes that away.
TX = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2, eps=1e-3))
UPDATES = 10
DEEP = models.MLP(hidden=(16,) * 13)


def trained(split, data=1, model=1, fsdp=False):
    """Returns the state after a few updates, in two dispatches of one program."""
    mesh = sharding.make_mesh(data, model)
    layout = sharding.Layout(mesh, fsdp)
    state, everywhere = create_state(MODEL, TX, 0, layout), sharding.replicated(mesh)
    window = sharding.zeros(Metrics.empty, everywhere)
    feed = DeviceFeed(split, 80, mesh, seed=1)
    batches, count = next(feed.chunks(0, UPDATES))
    count = sharding.put(np.int32(count // 2), everywhere)
    state, window = steps.train_steps(state, window, batches, count)
    compiled = steps.train_steps._cache_size()
    state, window = steps.train_steps(state, window, batches, count)
    assert steps.train_steps._cache_size() == compiled
    return state


@pytest.fixture(scope="module")
def on_one_device(synthetic):
    return jax.device_get(trained(synthetic.train).params)


def bytes_on_a_device(tree):
    device = jax.devices()[0]
    return sum(
        shard.data.nbytes
        for leaf in jax.tree.leaves(tree)
        for shard in leaf.addressable_shards
        if shard.device == device
    )


def slow(*mesh):
    return pytest.param(*mesh, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("data", "model", "fsdp"),
    [
        slow(8, 1, False),
        (4, 2, False),
        slow(2, 4, False),
        slow(1, 8, False),
        slow(8, 1, True),
        (4, 2, True),
        slow(2, 4, True),
        slow(1, 8, True),
    ],
)
def test_every_mesh_trains_to_the_parameters_of_one_device(
    data, model, fsdp, synthetic, on_one_device
):
    state = trained(synthetic.train, data, model, fsdp)
    # Sums over devices are in another order: float32 rounding, and steps of it.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        jax.device_get(state.params),
        on_one_device,
    )
    # What was split when it was made has stayed so through the loop.
    kept = jax.tree.map(
        lambda leaf, made: leaf.sharding.is_equivalent_to(made, leaf.ndim),
        state,
        state.layout.of(state),
    )
    assert all(jax.tree.leaves(kept))
    # The parameters and both of Adam's moments; what does not divide is small here.
    held = state.params, state.opt_state
    whole = 3 * 4 * models.num_parameters(state.params)
    parts = data * model if fsdp else model
    assert bytes_on_a_device(held) == pytest.approx(whole / parts, rel=0.1)


@pytest.mark.parametrize(
    ("name", "shape", "spec", "fsdp_spec"),
    [
        ("params/Dense_0/kernel", (784, 512), (None, "model"), ("data", "model")),
        ("params/Dense_0/bias", (512,), ("model",), ("model",)),
        ("params/Dense_1/kernel", (512, 256), ("model",), ("model", "data")),
        ("params/Dense_1/bias", (256,), (), ("data",)),
        ("opt_state/0/mu/Dense_12/kernel", (8, 8), (None, "model"), ("data", "model")),
        # Four do not divide ten.
        ("params/Dense_2/kernel", (256, 10), (), ("data",)),
        ("params/Conv_0/kernel", (5, 5, 1, 32), (), (None, None, None, "data")),
        ("params/Other_0/kernel", (7, 9), (), ()),
        ("opt_state/0/count", (), (), ()),
    ],
)
def test_what_is_split_follows_from_name_and_shape(name, shape, spec, fsdp_spec):
    for mesh, fsdp, expected in (
        ((2, 4), False, spec),
        ((2, 4), True, fsdp_spec),
        ((1, 1), True, ()),
    ):
        layout = sharding.Layout(sharding.make_mesh(*mesh), fsdp).for_model(DEEP)
        assert layout.spec_of(name, shape) == PartitionSpec(*expected)


class Encoder(nn.Module):
    """Two dense layers, whose names do not sort in the order of their calls."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(16, name="back")(nn.relu(nn.Dense(16, name="front")(x)))


class Named(nn.Module):
    """Names that say nothing about the order, and a layer of another kind."""

    @nn.compact
    def __call__(self, images, *, train=False):
        x = Encoder(name="trunk")(models.scale(images).reshape(-1, 784))
        x = nn.LayerNorm()(x)
        x = nn.relu(nn.Dense(32, name="z", use_bias=False)(x))
        return nn.Dense(10, name="Dense_0")(x)


def test_dense_layers_are_split_in_pairs_in_the_order_of_their_calls():
    rules = sharding.dense_rules(Named())
    assert dict(rules) == {
        "trunk/front/kernel": -1,
        "trunk/front/bias": -1,
        "trunk/back/kernel": -2,
        "z/kernel": -1,
        "z/bias": -1,
        "Dense_0/kernel": -2,
    }
    layout = sharding.Layout(sharding.make_mesh(2, 4))
    state = create_state(Named(), optax.adam(1e-2), 0, layout)
    assert state.layout.rules == rules
    for tree in (state.params, state.opt_state[0].nu):
        assert tree["trunk"]["front"]["kernel"].sharding.spec == PartitionSpec(
            None, "model"
        )
        assert tree["trunk"]["back"]["kernel"].sharding.spec == PartitionSpec("model")
        assert tree["trunk"]["back"]["bias"].sharding.spec == PartitionSpec()
        assert tree["LayerNorm_0"]["scale"].sharding.spec == PartitionSpec()
        assert tree["Dense_0"]["kernel"].sharding.spec == PartitionSpec("model")


def test_rules_of_the_users_replace_those_of_the_model():
    rules = (("kernel", 0), ("trunk/front/kernel", -1), ("bias", 1))
    layout = sharding.Layout(sharding.make_mesh(2, 4), rules=rules)
    params = create_state(Named(), optax.sgd(0.1), 0, layout).params
    assert params["trunk"]["front"]["kernel"].sharding.spec == PartitionSpec(
        None, "model"
    )
    assert params["z"]["kernel"].sharding.spec == PartitionSpec("model")
    assert params["trunk"]["back"]["bias"].sharding.spec == PartitionSpec()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (
            {"data": 0},
            r"mesh.data=0: expected -1 \(all devices\), or a whole",
        ),
        ({"data": "all"}, "mesh.data='all': expected -1"),
        ({"model": 0}, "mesh.model=0: expected a whole number, 1 or more"),
        ({"devices": "first"}, "mesh.devices='first': expected whole numbers"),
        ({"devices": jax.devices()}, "mesh.devices=.*: expected whole numbers"),
    ],
)
def test_a_mesh_of_nonsense_is_refused_by_name(wrong, said):
    with pytest.raises(UserError, match=said):
        sharding.make_mesh(**wrong)


def test_a_checkpoint_is_restored_into_any_mesh(finished_run):
    workdir, summary = finished_run
    mesh = {"data": 2, "model": 4, "fsdp": True}
    run = Experiment.build(tiny_config(mesh=mesh))
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    tree, _ = checkpoints.restore(40, functools.partial(resume.expected, run))
    kernel = tree["state"].opt_state[0].mu["Dense_0"]["kernel"]
    assert kernel.sharding.spec == PartitionSpec("data", "model")
    assert kernel.addressable_shards[0].data.size == kernel.size / 8
    lines = list(sharding.placement({"params": tree["state"].params}))
    assert (
        "params/Dense_0/bias: float32 [16], model, on 0, 1, 2, 3, 4, 5, 6, 7" in lines
    )
    evaluated = open_run(
        workdir, config=tiny_config(mesh=mesh), use_mesh=True
    ).summarize()
    assert evaluated.test.loss == pytest.approx(summary.test.loss, rel=1e-4)
    assert evaluated.devices.count == 8


@pytest.mark.slow
def test_a_run_moves_from_mesh_to_mesh(finished_run, tmp_path):
    shown = {
        "summaries": ("norms", "histograms", "filters", "mistakes"),
        "log_tensors": ("probabilities",),
        "report": True,
    }
    for stop, mesh, options in (
        (10, {"data": 4, "model": 2, "fsdp": True}, shown),
        (20, {"data": 2, "model": 4}, {}),
        (30, {"data": 1, "model": 8, "fsdp": True}, {}),
        (40, {"data": 1}, {}),
    ):
        config = tiny_config(num_steps=stop, mesh=mesh, **options)
        summary = loop.train_and_evaluate(config, tmp_path)
        if options:
            open_run(tmp_path, config=config, use_mesh=True).predict_split()
            open_run(tmp_path).export("numpy")
    assert summary.step == 40
    losses = []
    for workdir in (tmp_path, finished_run[0]):
        lines = (workdir / "metrics.jsonl").read_text().splitlines()
        *_, last = (json.loads(line) for line in lines)
        assert (last["step"], last["split"]) == (40, "validation")
        losses.append(last["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


def test_fsdp_sends_parameters_and_not_examples():
    layout = sharding.Layout(sharding.make_mesh(8), fsdp=True)
    split = sharding.split_over_data(layout.mesh, axis=0)
    batch = {
        "image": jax.ShapeDtypeStruct((120, 784), np.uint8, sharding=split),
        "label": jax.ShapeDtypeStruct((120,), np.int32, sharding=split),
    }
    state = abstract_state(models.MLP(hidden=(1024, 64)), optax.sgd(0.1), layout)
    program = steps.train_step.lower(state, batch).compile().as_text()
    gathered = re.findall(r"= f32\[([\d,]+)\]\S* all-gather\(", program)
    assert "1024,64" in gathered
    assert not [shape for shape in gathered if "120" in shape.split(",")]
    assert "all-to-all(" not in program


def test_convolutions_are_differentiated_inside_shard_map(synthetic):
    mesh = sharding.make_mesh(8)
    model = models.CNN(features=(8, 8), hidden=(4,), dropout_rate=0.0)
    state = create_state(model, optax.sgd(0.1))
    batch = batch_of(synthetic.train, 16)

    def loss(params, batch):
        return lax.pmean(steps.loss_fn(params, state, batch)[0], "data")

    specs = (PartitionSpec(), PartitionSpec("data"))
    gradient = jax.shard_map(
        jax.grad(loss), mesh=mesh, in_specs=specs, out_specs=PartitionSpec()
    )
    expected = jax.grad(lambda params: steps.loss_fn(params, state, batch)[0])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        jax.jit(gradient)(state.params, batch),
        jax.jit(expected)(state.params),
    )


def test_a_mesh_of_explicit_axes_is_refused():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    for given in (sharding.replicated(mesh), sharding.Layout(mesh)):
        with pytest.raises(UserError, match=r"axes of type Explicit, .* expected Auto"):
            create_state(models.SoftmaxRegression(), optax.sgd(0.1), sharding=given)


@pytest.mark.parametrize(
    ("axis", "missing", "use"),
    [("model", "data", {"fsdp": True}), ("data", "model", {"rules": (("bias", 0),)})],
)
def test_a_mesh_without_a_used_axis_is_refused(axis, missing, use):
    mesh = jax.make_mesh((8,), (axis,), axis_types=(AxisType.Auto,))
    model, tx = models.SoftmaxRegression(), optax.sgd(0.1)
    create_state(model, tx, sharding=sharding.Layout(mesh))
    with pytest.raises(UserError, match=rf"lacks the axis '{missing}'; .*make_mesh"):
        create_state(model, tx, sharding=sharding.Layout(mesh, **use))


def test_a_state_of_one_device_is_described_and_placed_on_several():
    state = create_state(models.SoftmaxRegression(), optax.sgd(0.1))
    lines = [*sharding.placement(state)]
    assert "params/Dense_0/bias: float32 [10], replicated, on 0" in lines
    placed = sharding.put_tree(state, sharding.replicated(sharding.make_mesh(8)))
    assert len(placed.key.sharding.device_set) == 8
    assert_identical(
        jax.random.key_data(placed.key), jax.device_get(jax.random.key_data(state.key))
    )


# As people write it by hand: every device takes its own part of a batch.
def by_hand(state, batch):
    grads, (metrics, _) = jax.grad(steps.loss_fn, has_aux=True)(
        state.params, state, batch
    )
    grads = lax.pmean(grads, "data")
    updates, opt_state = state.tx.update(grads, state.opt_state, state.params)
    state = state.replace(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        opt_state=opt_state,
    )
    return state, lax.psum(metrics, "data")


@pytest.mark.parametrize("how", ["shard_map", "pmap"])
def test_a_step_is_that_of_shard_map_and_pmap(how, synthetic):
    model, tx = models.MLP(hidden=(16,)), optax.adam(1e-2, eps=1e-3)
    mesh = sharding.make_mesh(8)
    ours = create_state(model, tx, 0, sharding.replicated(mesh))
    theirs = create_state(model, tx, 0, sharding.replicated(mesh))
    if how == "shard_map":
        specs = (PartitionSpec(), PartitionSpec("data"))
        step = jax.jit(
            jax.shard_map(
                by_hand,
                mesh=mesh,
                in_specs=specs,
                out_specs=PartitionSpec(),
                check_vma=False,
            )
        )
    else:
        mapped = jax.pmap(by_hand, "data", in_axes=(None, 0), out_axes=None)

        def step(state, batch):
            parts = {k: v.reshape(8, -1, *v.shape[1:]) for k, v in batch.items()}
            return mapped(state, parts)

    for start in range(0, 400, 80):
        batch = batch_of(synthetic.train, 80, start)
        theirs, expected = step(theirs, batch)
        split = sharding.put_tree(batch, sharding.split_over_data(mesh, axis=0))
        ours, metrics = steps.train_step(ours, split)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        jax.device_get((ours.params, ours.opt_state)),
        jax.device_get((theirs.params, theirs.opt_state)),
    )
    assert metrics.compute() == pytest.approx(expected.compute(), rel=1e-5)


def test_a_mesh_has_the_given_devices_in_their_order(monkeypatch):
    """JAX's function refuses GPUs of several machines, and sorts those of one."""

    def refuse(*args, **options):
        raise ValueError("jax.make_mesh does not support multi-slice topologies")

    monkeypatch.setattr(jax, "make_mesh", refuse)
    mesh = sharding.make_mesh(model=2, devices=(5, 2, 7, 0))
    assert dict(mesh.shape) == {"data": 2, "model": 2}
    assert [device.id for device in mesh.devices.flat] == [5, 2, 7, 0]
    assert mesh.axis_types == (AxisType.Auto, AxisType.Auto)
