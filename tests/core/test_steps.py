"""What somebody relies on who imports the steps into a loop of their own."""

import dataclasses
import functools
import inspect
import platform
import re
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from helpers import ROOT, assert_identical, batch_of, enable_x64, exchanges_examples
from jax.flatten_util import ravel_pytree

from flaxmnist.core import augment, gathering, models, objective, optim, sharding, steps
from flaxmnist.core.metrics import Metrics
from flaxmnist.core.nn import max_pool
from flaxmnist.core.state import abstract_state, create_state
from flaxmnist.data import DeviceFeed, HostFeed
from flaxmnist.errors import UserError
from flaxmnist.runtime import machine
from flaxmnist.training.evaluate import evaluate


class NormalizedMLP(nn.Module):
    """A model with state beside its parameters."""

    @nn.compact
    def __call__(self, images, *, train=False):
        x = models.scale(images).reshape(-1, 784)
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(x))
        return nn.Dense(10)(x)


def test_the_readmes_ten_lines_run(capsys):
    readme = (ROOT / "README.md").read_text()
    (lines,) = re.findall(r"```python\n(.*?)```", readme, flags=re.S)
    exec(lines.replace("range(200)", "range(2)"), {})
    assert "'accuracy'" in capsys.readouterr().out


@pytest.mark.slow
def test_a_loop_of_ones_own_learns(make_state, synthetic):
    state = make_state()
    before = steps.eval_step(state, batch_of(synthetic.test, 500)).compute()
    for start in range(0, 2000, 50):
        state, _ = steps.train_step(state, batch_of(synthetic.train, 50, start))
    after = steps.eval_step(state, batch_of(synthetic.test, 500)).compute()
    assert int(state.step) == 40
    assert before["accuracy"] < 0.3 < 0.8 < after["accuracy"]


def test_the_first_loss_of_softmax_regression_is_ln_10(make_state, synthetic):
    state = make_state(models.SoftmaxRegression())
    metrics = steps.eval_step(state, batch_of(synthetic.test, 100)).compute()
    assert metrics["loss"] == pytest.approx(np.log(10), rel=1e-6)


def test_the_cross_entropy_stays_finite_where_probabilities_vanish(make_state):
    state = make_state(models.SoftmaxRegression(), tx=optax.sgd(0.1))
    state.params["Dense_0"]["bias"] = jnp.arange(10) * 1e4
    batch = {"image": np.zeros((4, 28, 28, 1), np.uint8), "label": np.arange(4)}
    state, metrics = steps.train_step(state, batch)
    assert metrics.compute()["loss"] == pytest.approx(7.5e4)
    assert steps.all_finite(state)
    assert not steps.all_finite(jax.tree.map(lambda x: x / 0, {"a": jnp.ones(2)}))


def test_only_scalars_of_the_optimizer_may_be_infinite(make_state):
    tx = optax.chain(optax.adam(1e-3), optax.contrib.reduce_on_plateau())
    state = make_state(models.SoftmaxRegression(), tx=tx)
    assert jnp.isinf(state.opt_state[1].best_value)
    assert steps.all_finite(state)
    adam, plateau = state.opt_state
    nan = plateau._replace(best_value=jnp.array(jnp.nan))
    infinite = jax.tree.map(lambda leaf: leaf + jnp.inf, state.params)
    moments = adam[0]._replace(nu=infinite)
    for changed in (
        {"opt_state": (adam, nan)},
        {"opt_state": ((moments, *adam[1:]), plateau)},
        {"params": infinite},
        {"model_state": {"scale": jnp.array(jnp.inf)}},
    ):
        assert not steps.all_finite(state.replace(**changed))


@pytest.mark.slow
def test_the_naive_cross_entropy_breaks_where_ours_does_not(make_state):
    """The tutorials' warning about ``-sum(y * log(softmax(logits)))``."""
    state = make_state(models.SoftmaxRegression())
    bias = jnp.zeros(10).at[0].set(200.0)
    params = {"Dense_0": {"kernel": jnp.zeros((784, 10)), "bias": bias}}
    images, labels = np.zeros((4, 784), np.uint8), np.array([1, 2, 3, 0])

    def naive(params):
        logits = state.model.apply({"params": params}, images)
        return -jnp.mean(
            jnp.sum(jax.nn.one_hot(labels, 10) * jnp.log(nn.softmax(logits)), axis=-1)
        )

    def ours(params, label):
        return steps.loss_fn(params, state, {"image": images, "label": label})[0]

    assert not jnp.isfinite(naive(params))
    assert not steps.all_finite(jax.grad(naive)(params))
    for label in (labels, np.eye(10)[labels]):
        loss, grads = jax.value_and_grad(ours)(params, label)
        assert float(loss) == pytest.approx(150)
        assert steps.all_finite(grads)
        expected = jnp.zeros(10).at[0].set(0.75).at[1:4].set(-0.25)
        np.testing.assert_allclose(grads["Dense_0"]["bias"], expected, atol=1e-6)


@pytest.mark.filterwarnings("error::DeprecationWarning")
def test_norms_are_of_the_parameters_and_the_next_gradient(make_state, synthetic, mesh):
    feed = DeviceFeed(synthetic.train, 100, mesh, seed=0)
    batches, _ = next(feed.chunks(0, 4))
    state = make_state(models.MLP(hidden=(8,), dropout_rate=0.5), tx=optax.sgd(1.0))
    found = jax.device_get(steps.norms(state, batches))
    before = jax.device_get(state.params)
    state, _ = steps.train_step(state, jax.jit(lambda b: b.at(0))(batches))
    change = jax.tree.map(lambda a, b: a - b, before, jax.device_get(state.params))
    for name, tree in (("gradient_norm", change), ("parameter_norm", before)):
        flat = np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])
        assert found[name] == pytest.approx(np.linalg.norm(flat))


def test_uint8_and_scaled_floats_are_the_same_images(make_state, synthetic):
    state, batch = make_state(), batch_of(synthetic.test, 8)
    scaled = (batch["image"] / 255).astype(np.float32)
    outputs = steps.predict_step(state, batch["image"])
    np.testing.assert_allclose(
        outputs["logits"], steps.predict_step(state, scaled)["logits"], atol=1e-6
    )
    np.testing.assert_allclose(outputs["probabilities"].sum(-1), np.ones(8), rtol=1e-6)
    assert_identical(outputs["classes"], outputs["probabilities"].argmax(-1))


def test_dropout_draws_anew_each_step_and_only_in_training(make_state, synthetic):
    still = optax.sgd(0.0)
    model = models.MLP(hidden=(64,), dropout_rate=0.5)
    state, batch = make_state(model, tx=still), batch_of(synthetic.train, 50)
    whole = models.MLP(hidden=(64,)).apply(
        {"params": state.params}, jnp.asarray(batch["image"])
    )
    evaluated = steps.predict_step(state, batch["image"])["logits"]
    np.testing.assert_allclose(evaluated, whole, rtol=1e-5, atol=1e-6)
    losses = []
    for _ in range(2):
        state, metrics = steps.train_step(state, batch)
        losses.append(metrics.compute()["loss"])
    assert losses[0] != losses[1]


class Keys(nn.Module):
    """Keeps the keys that it draws."""

    @nn.compact
    def __call__(self, images, *, train):
        drawn = self.variable("drawn", "keys", jnp.zeros, (4, 2), jnp.uint32)
        if train:
            names = ("noise", "noise", "other", "dropout")
            keys = jnp.stack([self.make_rng(name) for name in names])
            drawn.value = jax.random.key_data(keys)
        return nn.Dense(10)(models.scale(images).reshape(-1, 784))


def test_a_model_draws_keys_of_any_name_anew_in_each_step(synthetic):
    batch, drawn = batch_of(synthetic.train, 4), []
    for parts in (1, 2):
        state = create_state(Keys(), optax.sgd(0.1), grad_accumulation=parts)
        for _ in range(2):
            state, _ = steps.train_step(state, batch)
            drawn += jax.device_get(state.model_state["drawn"]["keys"]).tolist()
    assert len(set(map(tuple, drawn))) == 16


def test_padding_changes_no_update(make_state, synthetic):
    batch = batch_of(synthetic.train, 50)
    mask = np.arange(50) < 30
    whole = jax.tree.map(lambda x: x[:30], batch)
    model = models.MLP(hidden=(16,))
    padded, _ = steps.train_step(make_state(model), batch | {"mask": mask})
    plain, _ = steps.train_step(make_state(model), whole)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        padded.params,
        plain.params,
    )


def test_batch_statistics_are_kept_and_used(make_state, synthetic):
    state, batch = make_state(NormalizedMLP()), batch_of(synthetic.train, 100)
    fresh = jax.device_get(state.model_state)
    state, _ = steps.train_step(state, batch)
    moved = jax.device_get(state.model_state)
    mean = moved["batch_stats"]["BatchNorm_0"]["mean"]
    assert not np.array_equal(mean, fresh["batch_stats"]["BatchNorm_0"]["mean"])
    assert_identical(jax.device_get(state.model_state), moved)
    steps.eval_step(state, batch)
    assert_identical(jax.device_get(state.model_state), moved)


@pytest.mark.slow
@pytest.mark.parametrize("placement", [DeviceFeed, HostFeed])
def test_many_steps_in_one_dispatch_are_those_steps(
    placement, make_state, synthetic, mesh
):
    feed = placement(synthetic.train, 100, mesh, seed=3)
    one_by_one, total = make_state(), Metrics.empty()
    many, window = make_state(), Metrics.empty()
    for batches, count in feed.chunks(0, 24):  # Across the end of an epoch of 20.
        for step in range(int(one_by_one.step), int(one_by_one.step) + count):
            batch = jax.jit(lambda b, s: b.at(s))(batches, step)
            one_by_one, metrics = steps.train_step(one_by_one, batch)
            total = total.merge(metrics)
        many, window = steps.train_steps(many, window, batches, jnp.int32(count))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5),
        many.params,
        one_by_one.params,
    )
    assert_identical(window.confusion.sum(), total.confusion.sum())


def test_the_hot_loop_moves_nothing_and_traces_once(make_state, synthetic, mesh):
    feed = DeviceFeed(synthetic.train, 100, mesh, seed=0)
    everywhere = sharding.replicated(mesh)
    state = make_state()
    window = sharding.put_tree(Metrics.empty(), everywhere)
    counts = [sharding.put(np.int32(count), everywhere) for count in (0, 1, 3, 7)]
    batches, _ = next(feed.chunks(0, 11))
    state, window = steps.train_steps(state, window, batches, counts[0])
    traced = steps.train_steps._cache_size()
    with jax.transfer_guard("disallow_explicit"):
        for count in counts:
            state, window = steps.train_steps(state, window, batches, count)
    assert steps.train_steps._cache_size() == traced
    assert int(state.step) == 11


@pytest.mark.slow
def test_the_training_program_holds_no_convolution_on_cpu(make_state, synthetic, mesh):
    """XLA's CPU backend runs its gradient in a loop ten times slower."""
    feed = DeviceFeed(synthetic.train, 100, mesh, seed=0)
    batches, _ = next(feed.chunks(0, 1))
    window = sharding.put_tree(Metrics.empty(), sharding.replicated(mesh))
    state = make_state(models.CNN(features=(8, 4), hidden=(16,)))
    lowered = steps.train_steps.lower(state, window, batches, jnp.int32(1))
    program = lowered.compile().as_text()
    assert re.findall(r"\b(?:convolution|select-and-scatter)\(", program) == []
    assert not re.search(r"custom_call_target=\"[^\"]*conv", program)


@pytest.mark.parametrize("batch_size", [100, 7])
def test_one_thread_makes_a_step_of_softmax_regression(
    batch_size, make_state, synthetic, monkeypatch
):
    """Waking another thread at each step takes longer than what it computes."""
    mesh = sharding.make_mesh(1)
    feed = DeviceFeed(synthetic.train, batch_size, mesh, seed=0)
    batches, _ = next(feed.chunks(0, 1))
    window = sharding.put_tree(Metrics.empty(), sharding.replicated(mesh))
    state = make_state(models.SoftmaxRegression(), mesh=mesh)

    def program():
        lowered = steps.train_steps.lower(state, window, batches, jnp.int32(1))
        return lowered.compile().as_text()

    made, divided = program(), '"outer_dimension_partitions":["'
    assert divided not in made
    if platform.machine() == "x86_64" and jax.__version_info__ >= (0, 10):
        # XLA divides the products that are not in a fusion of this kind.
        assert made.count(" dot(") == made.count('"__ynn_fusion"') == 2
    if machine.cpu_threads() > 1:
        monkeypatch.setattr(objective, "MAX_SMALL_BYTES", 0)
        steps.train_steps.clear_cache()
        try:
            assert divided in program()
        finally:
            steps.train_steps.clear_cache()


@pytest.mark.parametrize("count", [0, 1, 7, 100])
def test_one_thread_gathers_the_rows_that_several_do(count, monkeypatch):
    array = jnp.arange(60.0).reshape(20, 3)
    rows = jax.random.randint(jax.random.key(0), (count,), 0, 20)

    def uses_a_loop():
        gather = functools.partial(gathering.gather_rows, array)
        return "scan" in str(jax.make_jaxpr(gather)(rows))

    assert not uses_a_loop()
    with gathering.on_one_thread(True):
        assert uses_a_loop()
        assert_identical(gathering.gather_rows(array, rows), array[rows])
        monkeypatch.setattr(gathering, "MIN_DIVIDED_BYTES", count * 3 * 4)
        assert not uses_a_loop()


# Small meshes are tested in `test_sharding`, too.
@pytest.mark.slow
@pytest.mark.parametrize("features", [(2, 4), (8, 4)])
def test_eight_devices_make_the_parameters_of_one(features, make_state, synthetic):
    found, totals = [], []
    for devices in (1, 8):
        mesh = sharding.make_mesh(devices)
        feed = DeviceFeed(synthetic.train, 80, mesh, seed=1)
        everywhere = sharding.replicated(mesh)
        model = models.CNN(features=features, hidden=(16,))
        state = make_state(model, mesh=mesh, tx=optax.sgd(0.05, momentum=0.9))
        first = jax.device_get(state.params)
        window = sharding.put_tree(Metrics.empty(), everywhere)
        if devices > 1:  # Each has a part of the batch, so gradients are summed.
            batches, _ = next(feed.chunks(0, 1))
            lowered = steps.train_steps.lower(state, window, batches, jnp.int32(1))
            assert "all-reduce" in lowered.compile().as_text()
        for batches, count in feed.chunks(0, 5):
            count = sharding.put(np.int32(count), everywhere)
            state, window = steps.train_steps(state, window, batches, count)
        kernel = state.params["Dense_0"]["kernel"]
        assert kernel.sharding.is_fully_replicated
        assert len(kernel.sharding.device_set) == devices
        found.append(jax.device_get(state.params))
        # 64 divides neither the 500 examples nor does 8 divide the last batch.
        evaluation = DeviceFeed(synthetic.test, 64, mesh)
        state = state.replace(params=sharding.put_tree(found[0], everywhere))
        totals.append(evaluate(state, evaluation, everywhere).compute())
    # Devices sum in another order, and rounding decides near ties of max-pooling.
    one, eight, first = (ravel_pytree(params)[0] for params in (*found, first))
    assert jnp.linalg.norm(eight - one) < 1e-3 * jnp.linalg.norm(one - first)
    assert totals[0]["count"] == totals[1]["count"] == 500
    assert totals[0] == pytest.approx(totals[1], rel=1e-4)


@pytest.mark.parametrize("batch_size", [1, 7, 64, 500, 1000])
def test_evaluation_counts_every_example_once(batch_size, make_state, synthetic, mesh):
    state = make_state(models.SoftmaxRegression())
    for placement in (DeviceFeed, HostFeed):
        feed = placement(synthetic.test, batch_size, mesh)
        metrics = evaluate(state, feed, sharding.replicated(mesh))
        assert_identical(
            metrics.confusion.sum(axis=1), np.bincount(synthetic.test.labels)
        )


def test_a_step_of_the_cnn_computes_less_than_direct_convolution(monkeypatch):
    """Of XLA's own count of one step: what takes time may not creep back."""
    tx = optim.build("adam", 1e-4, total_steps=1, steps_per_epoch=1)[0]
    state = abstract_state(models.CNN(features=(32, 32), hidden=(64,)), tx)
    batch = {
        "image": jax.ShapeDtypeStruct((8, 28, 28, 1), jnp.uint8),
        "label": jax.ShapeDtypeStruct((8,), jnp.int32),
    }

    # Functions of their own each time, or they would not be traced again.
    monkeypatch.setattr(steps, "gradient", inspect.unwrap(steps.gradient))

    def cost():
        step = inspect.unwrap(steps.train_step)
        compiled = jax.jit(lambda *args: step(*args)).lower(state, batch).compile()
        fusions = len(re.findall(r" fusion\(", compiled.as_text()))
        return compiled.cost_analysis() | {"fusions": fusions}

    class Conv(nn.Conv):
        """Convolution, ReLU and pooling one after the other."""

        @nn.compact
        def __call__(self, images):
            return max_pool(nn.relu(super().__call__(images)), (2, 2), (2, 2))

    ours = cost()
    monkeypatch.setattr(models.ops, "has_fast_gradient", lambda *_: False)
    monkeypatch.setattr(models.pooled, "Conv", Conv)
    direct = cost()
    assert ours["flops"] < 0.5 * direct["flops"]
    # JAX before 0.8 fuses less of ours. Adding up tiles in place counts 5 % more bytes
    # than adding padded arrays, and takes less time.
    bound = 2.6 if jax.__version_info__ >= (0, 8) else 3.15
    assert ours["bytes accessed"] < bound * direct["bytes accessed"]
    assert ours["fusions"] < 2 * direct["fusions"]


def test_micro_batches_make_the_update_of_the_whole_batch(synthetic):
    """The mean over all valid examples, however unevenly the mask leaves them."""
    batch = batch_of(synthetic.train, 48) | {"mask": np.arange(48) % 4 < 2}
    batch["mask"][:20] = False

    def train(parts):
        state = create_state(
            models.MLP(hidden=(8,)), optax.adam(1e-2), grad_accumulation=parts
        )
        wide = jax.tree.map(
            lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, jnp.float64)),
            (state.params, state.opt_state),
        )
        state = state.replace(params=wide[0], opt_state=wide[1])
        for _ in range(3):
            state, metrics = steps.train_step(state, batch)
        return jax.device_get((state.params, metrics))

    with enable_x64(True):
        (whole, seen), *others = (train(1), train(4))
    assert seen.count == 14
    for params, metrics in others:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12),
            (params, metrics),
            (whole, seen),
        )


@pytest.mark.parametrize("parts", [1, 2])
def test_steps_keep_their_types_where_64_bits_are_enabled(parts, synthetic, mesh):
    everywhere = sharding.replicated(mesh)
    images = augment.Augment(noise=0.1, thickness=0.3, outliers=0.2)
    model = models.CNN(features=(2,), hidden=(), batch_norm=True)
    with enable_x64(True):
        options = {"augment": images, "grad_accumulation": parts}
        state = create_state(model, optax.sgd(0.1), 0, everywhere, **options)
        types = {
            leaf.dtype for leaf in jax.tree.leaves((state.params, state.model_state))
        }
        assert types == {jnp.dtype("float32")}
        metrics = sharding.put_tree(Metrics.empty(), everywhere)
        feed = DeviceFeed(synthetic.train, 10, mesh, seed=0)
        for batches, count in feed.chunks(0, 2):
            state, metrics = steps.train_steps(state, metrics, batches, count)
    assert metrics.compute()["count"] == 20


class Sows(nn.Module):
    keep_last: bool = False

    @nn.compact
    def __call__(self, images, *, train=False):
        x = models.scale(images).reshape(-1, 784)
        how = {"reduce_fn": lambda _, new: new, "init_fn": lambda: None}
        self.sow("means", "images", x.mean(), **(how if self.keep_last else {}))
        return nn.Dense(10)(x)


def test_collections_keep_their_structure(synthetic):
    batch = batch_of(synthetic.train, 20)
    state, _ = steps.train_step(create_state(Sows(True), optax.sgd(0.1)), batch)
    found = state.model_state["means"]["images"]
    np.testing.assert_allclose(found, batch["image"].mean() / 255, rtol=1e-5)
    for parts in (1, 2):
        state = create_state(Sows(), optax.sgd(0.1), grad_accumulation=parts)
        with pytest.raises(UserError, match="'means' of Sows has other arrays"):
            steps.train_step(state, batch)


def test_further_metrics_need_no_derivative(synthetic):
    def first(logits, labels):
        shape = jax.ShapeDtypeStruct(labels.shape, jnp.float32)
        return jax.pure_callback(lambda x: np.asarray(x)[:, 0], shape, logits)

    batch = batch_of(synthetic.train, 20)
    model, tx = models.SoftmaxRegression(), optax.sgd(0.1)
    state = create_state(model, tx, metrics={"first": first})
    expected = float(steps.predict_step(state, batch["image"])["logits"][:, 0].mean())
    _, metrics = steps.train_step(state, batch)
    assert metrics.compute()["first"] == pytest.approx(expected, abs=1e-6)
    for wrong in ({"loss": first}, {"first": "top5"}):
        with pytest.raises(UserError, match=r"metrics=.*: expected a function of"):
            create_state(model, tx, metrics=wrong)


class Dropouts(nn.Module):
    """Has dropout as users may call it."""

    independent_examples = True

    @nn.compact
    def __call__(self, images, *, train=False):
        x = nn.Dense(8)(models.scale(images).reshape(-1, 784))
        x = nn.Dropout(0.5)(x, deterministic=not train)
        x = nn.Dropout(0.5, deterministic=not train)(nn.Dense(8)(x))
        drop = nn.remat(lambda layer, x: layer(x, not train))
        return nn.Dense(10)(drop(nn.Dropout(0.1), nn.Dropout(0)(x, not train)))


def gradient(state, batch):
    """Traces anew: what is cached may contain another `CACHE_BYTES`."""
    traced = inspect.unwrap(steps.gradient)
    return jax.jit(lambda state, batch: traced(state, batch))(state, batch)


def assert_close(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one, other)


@pytest.mark.parametrize("parts", [2, 4])
def test_micro_batches_draw_the_dropout_of_the_whole_batch(parts, synthetic):
    batch = batch_of(synthetic.train, 8)
    state = create_state(Dropouts(), optax.sgd(1.0))
    whole, _ = gradient(state, batch)
    other, _ = gradient(state.replace(step=jnp.int32(1)), batch)
    cut, _ = gradient(state.replace(grad_accumulation=parts), batch)
    assert_close(cut, whole)
    assert not np.allclose(other["Dense_0"]["kernel"], whole["Dense_0"]["kernel"], 1e-3)


def test_dropout_of_other_forms_remains_that_of_linen(synthetic):
    """Such as noise that examples share, or a layer that hides the stream."""

    class Own(nn.Dropout):
        def __call__(self, inputs, deterministic):
            first = super().__call__(inputs, deterministic)[:, :1]
            return first * jnp.ones_like(inputs)

    class Forms(nn.Module):
        @nn.compact
        def __call__(self, images, *, train=False):
            x = 1 + nn.Dense(10)(models.scale(images).reshape(-1, 784)) ** 2
            key = self.make_rng("dropout") if train else None
            scanned = nn.scan(
                lambda layer, carry, _: (layer(carry, not train), None),
                variable_broadcast="params",
                split_rngs={"dropout": True},
                length=1,
            )
            kept = [
                nn.Dropout(0.5)(x, not train),
                nn.Dropout(0.5, broadcast_dims=(0,))(x, not train),
                Own(0.5)(x, not train),
                nn.Dropout(0.5)(x, not train, key),
                nn.Dropout(0.5)(x.T, not train).T,
                scanned(nn.Dropout(0.5), x, None)[0],
                nn.Dropout(0)(x, not train),
                nn.Dropout(1)(x, not train),
            ]
            self.sow("intermediates", "kept", kept)
            self.sow("intermediates", "inputs", x)
            return x

    state = create_state(Forms(), optax.sgd(1.0))
    state = state.replace(model_state={"intermediates": {}})
    _, (_, left) = steps.loss_fn(state.params, state, batch_of(synthetic.train, 8))
    (kept,), (x,) = left["intermediates"]["kept"], left["intermediates"]["inputs"]
    by_place, same_rows, same_columns, *_, everything, nothing = kept
    for some in kept[:6]:
        assert 0.1 < (some == 0).mean() < 0.9
    assert len(np.unique(by_place == 0, axis=0)) > 4
    assert_close(by_place[by_place != 0], 2 * x[by_place != 0])
    assert len(np.unique(same_rows == 0, axis=0)) == 1
    assert len(np.unique(same_columns, axis=1).T) == 1
    assert_identical(everything, x)
    assert not nothing.any()


def test_a_large_batch_is_divided_on_one_cpu_if_that_changes_no_update(
    make_state, monkeypatch, synthetic
):
    """The activations are those of two layers, of dropout and of the model itself."""
    state = create_state(models.MLP(hidden=(8,), dropout_rate=0.5), optax.sgd(1.0))
    batch = batch_of(synthetic.train, 40) | {"weight": np.linspace(0, 1, 40)}
    whole, _ = gradient(state, batch)
    monkeypatch.setattr(objective, "CACHE_BYTES", 11 * (32 + 40 + 32 + 40))

    def parts(state=state, count=40):
        return objective.num_micro_batches(state, {"image": np.zeros(count)})

    found = [parts(count=count) for count in (0, 11, 12, 40, 44, 47)]
    assert found == [1, 1, 2, 4, 4, 1]
    cut, (metrics, _) = gradient(state, batch)
    assert metrics.count == 40
    assert_close(cut, whole)
    found = jax.make_jaxpr(lambda state: gradient(state, batch))(state)
    assert "length=4" in str(found)

    class Own(models.MLP):
        """May mix examples."""

    normalized = make_state(models.MLP(hidden=(8,), batch_norm=True))
    everywhere = sharding.replicated(sharding.make_mesh(8))
    sharded = create_state(models.MLP(hidden=(8,)), optax.sgd(1.0), 0, everywhere)
    for other in (make_state(Own(hidden=(8,))), normalized, sharded):
        assert parts(other) == 1
    assert parts(state.replace(grad_accumulation=2)) == 2
    monkeypatch.setattr(objective, "CACHE_BYTES", 1)
    assert parts() == 40
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert parts() == 1


def test_micro_batches_add_up_in_single_precision(synthetic):
    class Half(nn.Module):
        @nn.compact
        def __call__(self, images, *, train=False):
            x = models.scale(images).reshape(-1, 784)
            return nn.Dense(10, param_dtype=jnp.bfloat16, use_bias=False)(x)

    batch = batch_of(synthetic.train, 64) | {"weight": np.linspace(0, 1, 64)}
    state = create_state(Half(), optax.sgd(1.0))
    whole, _ = gradient(state, batch)
    cut, _ = gradient(state.replace(grad_accumulation=32), batch)
    one, other = (tree["Dense_0"]["kernel"] for tree in (whole, cut))
    assert other.dtype == jnp.bfloat16
    error = np.abs(np.float32(one) - np.float32(other)).max()
    assert error < 0.01 * np.abs(np.float32(one)).max()


@pytest.mark.slow
def test_micro_batches_update_statistics_in_turn(make_state, synthetic):
    state = make_state(models.MLP(hidden=(32,), batch_norm=True))
    state = state.replace(grad_accumulation=2)
    batch = batch_of(synthetic.train, 40)
    found, (metrics, model_state) = jax.jit(steps.gradient)(state, batch)

    differentiate = jax.jit(jax.grad(steps.loss_fn, has_aux=True))
    grads, by_hand = [], state
    for index in range(2):
        half = jax.tree.map(lambda array, index=index: array[index::2], batch)
        new, (_, left) = differentiate(state.params, by_hand, half)
        grads.append(new)
        by_hand = by_hand.replace(model_state=left)
    jax.tree.map(
        lambda a, b, c: np.testing.assert_allclose(a, (b + c) / 2, atol=1e-6),
        found,
        *grads,
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        model_state,
        by_hand.model_state,
    )
    assert metrics.count == 40


def test_a_micro_batch_is_split_over_devices_where_it_is(make_state, synthetic):
    mesh = sharding.make_mesh(8)
    feed = DeviceFeed(synthetic.train, 80, mesh, seed=1)
    window = sharding.put_tree(Metrics.empty(), sharding.replicated(mesh))
    state = make_state(models.MLP(hidden=(8,)), mesh=mesh).replace(grad_accumulation=5)
    batches, _ = next(feed.chunks(0, 1))
    lowered = steps.train_steps.lower(state, window, batches, jnp.int32(1))
    program = lowered.compile().as_text()
    assert "all-reduce" in program
    # No image is sent to another device.
    assert not exchanges_examples(program)


def test_a_batch_that_cannot_be_cut_is_refused(make_state, synthetic):
    state = make_state(models.MLP(hidden=(8,))).replace(grad_accumulation=3)
    with pytest.raises(UserError, match=r"of 50 cannot be split into 3 .* such as 51"):
        steps.train_step(state, batch_of(synthetic.train, 50))


@pytest.mark.parametrize("decay", [0.6, 0.9999])
def test_the_average_of_the_parameters_is_what_evaluation_reads(decay, synthetic):
    state = create_state(models.SoftmaxRegression(), optax.sgd(0.5), ema_decay=decay)
    batch = batch_of(synthetic.test, 100)
    assert_identical(state.eval_params, state.params)
    seen = []
    for start in range(0, 250, 50):
        state, _ = steps.train_step(state, batch_of(synthetic.train, 50, start))
        seen.append(jax.device_get(state.params))
        weights = decay ** np.arange(len(seen))[::-1]
        jax.tree.map(
            lambda found, *each, weights=weights: np.testing.assert_allclose(
                found, np.average(each, axis=0, weights=weights), atol=1e-6
            ),
            state.eval_params,
            *seen,
        )
    plain = state.replace(ema=None, ema_decay=None)
    averaged = plain.replace(params=state.ema)
    for step, given in (
        (steps.eval_step, batch),
        (steps.predict_step, batch["image"]),
    ):
        found = step(state, given)
        assert_identical(found, step(averaged, given))
        assert not all(
            np.array_equal(a, b)
            for a, b in zip(
                jax.tree.leaves(found), jax.tree.leaves(step(plain, given)), strict=True
            )
        )


HALF = [
    models.SoftmaxRegression(dtype="bfloat16"),
    models.MLP(hidden=(32,), dropout_rate=0.2, batch_norm=True, dtype="bfloat16"),
    models.CNN(hidden=(16,), features=(8, 8), batch_norm=True, dtype="bfloat16"),
]


@pytest.mark.parametrize("model", HALF, ids=lambda model: type(model).__name__)
def test_bfloat16_computes_what_float32_keeps(model, synthetic):
    state, batch = abstract_state(model, optax.adam(1e-2)), batch_of(synthetic.test, 4)

    def activations(state):
        return model.apply(
            {"params": state.params, **state.model_state},
            batch["image"],
            train=True,
            rngs={"dropout": state.key},
            mutable=True,
            capture_intermediates=True,
        )[1]["intermediates"]

    seen = jax.eval_shape(activations, state)
    assert jax.tree.leaves(seen.pop("__call__"))[0].dtype == jnp.float32
    last = max(name for name in seen if name.startswith("Dense"))
    assert jax.tree.leaves(seen.pop(last))[0].dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(seen)} <= {jnp.dtype("bfloat16")}
    assert bool(seen) == (last != "Dense_0")
    state, metrics = jax.eval_shape(steps.train_step, state, batch)
    kept = (state.params, state.opt_state, state.model_state, metrics.loss_sum)
    floats = {leaf.dtype for leaf in jax.tree.leaves(kept)} - {np.dtype(np.int32)}
    assert floats == {np.dtype(np.float32)}
    outputs = jax.eval_shape(steps.predict_step, state, batch["image"])
    assert outputs["logits"].dtype == outputs["probabilities"].dtype == jnp.float32


@pytest.mark.parametrize(
    "model",
    [
        models.MLP(hidden=(32,), dropout_rate=0.2, dtype="bfloat16"),
        pytest.param(
            models.CNN(features=(2, 4), hidden=(16,), dtype="bfloat16"),
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda model: type(model).__name__,
)
def test_bfloat16_learns_as_float32_does(model, make_state, synthetic):
    state = make_state(model)
    for start in range(0, 2000, 50):
        state, _ = steps.train_step(state, batch_of(synthetic.train, 50, start))
    found = steps.eval_step(state, batch_of(synthetic.test, 500)).compute()
    assert found["accuracy"] > 0.8


def test_a_donated_state_is_named(make_state, synthetic):
    state, batch = make_state(models.SoftmaxRegression()), batch_of(synthetic.test, 5)
    kept, _ = steps.train_step(state, batch)
    for step, given in (
        (steps.train_step, batch),
        (steps.eval_step, batch),
        (steps.predict_step, batch["image"]),
    ):
        with pytest.raises(UserError, match=r"donated to an earlier step .* returned"):
            step(state, given)
    state, _ = steps.train_step(kept, batch)
    assert int(state.step) == 2


def test_swapped_arguments_are_named(make_state, synthetic):
    state, batch = make_state(models.SoftmaxRegression()), batch_of(synthetic.test, 5)
    for step in (steps.train_step, steps.eval_step):
        said = rf"state is a dict; expected a TrainState, as in {step.__name__}\(state"
        for given in ((batch, state), (state.params, batch)):
            with pytest.raises(UserError, match=said):
                step(*given)
        with pytest.raises(UserError, match=said):
            step(batch=state, state=batch)
    state, _ = steps.train_step(state, batch)  # It was not donated before.
    assert int(state.step) == 1


class NoTrain(nn.Module):
    @nn.compact
    def __call__(self, images):
        return nn.Dense(10)(models.scale(images).reshape(-1, 784))


class Lists(models.SoftmaxRegression):
    widths: Sequence[int] = ()


@dataclasses.dataclass  # Not frozen, so Python makes it unhashable.
class Unfrozen:
    strength: float = 0.1

    def __call__(self, one, other):
        return other


UNHASHABLE = "cannot be hashed; use tuples instead of lists, and frozen dataclasses"


class NoParameters(nn.Module):
    def __call__(self, images, *, train=False):
        return jnp.zeros((len(images), 10))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (
            {"ema_decay": 1.0},
            r"ema_decay=1.0: expected a number, greater than 0",
        ),
        ({"ema_decay": 2.0}, r"ema_decay=2.0: expected"),
        ({"grad_accumulation": 0}, r"grad_accumulation=0: expected a whole number, 1"),
        ({"grad_accumulation": 1.5}, r"grad_accumulation=1.5: expected a whole number"),
        ({"seed": -1}, r"seed=-1: expected a whole number, 0 or more"),
        ({"seed": "zero"}, r"seed='zero': expected a whole number"),
        ({"model": models.MLP}, r"model=<class.*: expected a flax.linen module"),
        ({"model": NoTrain()}, r"model=NoTrain does not take the argument 'train'"),
        ({"model": NoParameters()}, r"model=NoParameters has no parameters"),
        (
            {"model": Lists(widths=[8, 4])},
            r"attributes of model=Lists cannot be hashed; use tuples instead of lists",
        ),
        ({"tx": optax.adam}, r"tx=<function adam.*: expected an optax transformation"),
        ({"tx": 1e-3}, r"tx=0.001: expected an optax transformation"),
        (
            {"sharding": "cpu"},
            r"sharding='cpu': expected .* sharding.replicated",
        ),
        ({"loss": Unfrozen()}, f"attributes of loss=Unfrozen {UNHASHABLE}"),
        ({"augment": Unfrozen()}, f"attributes of augment=Unfrozen {UNHASHABLE}"),
        (
            {"metrics": {"mine": Unfrozen()}},
            rf"attributes of metrics\['mine'\]=Unfrozen {UNHASHABLE}",
        ),
        ({"metrics": ("top5",)}, r"metrics=\('top5',\): expected a dict of functions"),
        ({"metrics": [max]}, r"metrics=\[.*max>\]: expected a dict of functions"),
        (
            {"sharding": sharding.Layout(sharding.make_mesh(), rules=[("bias", 0)])},
            f"attributes of sharding=Layout {UNHASHABLE}",
        ),
    ],
)
def test_a_state_of_nonsense_is_refused_by_name(wrong, said):
    given = {"model": models.SoftmaxRegression(), "tx": optax.sgd(0.1)} | wrong
    with pytest.raises(UserError, match=said):
        create_state(**given)


def probe(seen):
    """An optimizer that stores what it gets, and the derivative of `value_fn`."""

    def init(params):
        return {"value": jnp.zeros(2), "grad": (params, params)}

    def update(grads, state, params, *, value, grad, value_fn):
        again, slope = jax.value_and_grad(value_fn)(params)
        seen.append(value_fn)
        return grads, {"value": jnp.stack([value, again]), "grad": (grad, slope)}

    return optax.GradientTransformationExtraArgs(init, update)


@pytest.mark.parametrize("parts", [1, 3])
def test_optimizers_get_the_value_the_gradient_and_the_function(parts, synthetic):
    seen = []
    model = models.MLP(hidden=(8,), dropout_rate=0.5, batch_norm=True)
    state = create_state(model, probe(seen), grad_accumulation=parts)
    batch = batch_of(synthetic.train, 12) | {"mask": np.arange(12) < 10}
    state, metrics = steps.train_step(state, batch)
    assert seen  # It was traced.
    found = state.opt_state
    np.testing.assert_allclose(found["value"], metrics.compute()["loss"], 1e-5)
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, 1e-4, 1e-5),
        *found["grad"],
    )


@pytest.mark.parametrize(
    "tx",
    [
        optax.lbfgs(),
        optax.chain(optax.sgd(0.05), optax.contrib.reduce_on_plateau(patience=1)),
    ],
    ids=["lbfgs", "reduce_on_plateau"],
)
def test_optimizers_with_extra_arguments_train(tx, synthetic):
    state = create_state(models.SoftmaxRegression(), tx)
    batch = batch_of(synthetic.train, 50)
    losses = []
    for _ in range(3):
        state, metrics = steps.train_step(state, batch)
        losses.append(metrics.compute()["loss"])
    assert losses[2] < losses[1] < losses[0]


def test_runs_stacked_by_vmap_are_the_runs_one_by_one(make_state, synthetic):
    batch = batch_of(synthetic.train, 20)
    runs = [make_state(models.SoftmaxRegression(), seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *runs)
    stacked, metrics = jax.vmap(steps.train_step, (0, None))(stacked, batch)
    after = jax.vmap(steps.eval_step, (0, None))(stacked, batch)
    for index, run in enumerate(runs):
        run, one = steps.train_step(run, batch)
        for together, alone in ((metrics, one), (after, steps.eval_step(run, batch))):
            found = {name: row[index] for name, row in together.compute().items()}
            assert found == pytest.approx(alone.compute(), rel=1e-5)
