"""Programs that one process compiled serve later ones, if they are the same."""

import dataclasses
import functools
import os
import re
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest
from helpers import batch_of
from jax.experimental.compilation_cache import compilation_cache

from flaxmnist.core import losses, metrics, models
from flaxmnist.core.augment import Augment
from flaxmnist.core.ensemble import Translated
from flaxmnist.core.metrics import Metrics
from flaxmnist.core.state import create_state
from flaxmnist.core.steps import eval_step, predict_step, train_step
from flaxmnist.errors import UserError
from flaxmnist.runtime import files, machine
from flaxmnist.training import programs
from flaxmnist.training.evaluate import OUTPUTS


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Keeps programs of one device, as a command does; returns their directory."""
    (device, *_) = jax.devices()
    monkeypatch.setattr(jax, "devices", lambda *_: [device])
    monkeypatch.setattr(files, "cache_enabled", True)
    monkeypatch.setattr(programs, "_called", {})
    former = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    yield tmp_path
    jax.config.update("jax_compilation_cache_dir", former)
    compilation_cache.reset_cache()


def begin_process():
    programs._called.clear()


def read_once():
    """Returns whether there was one program, from a file if `_compile` is replaced."""
    return [type(one) for one in programs._called.values()] == [jax.stages.Compiled]


def names(folder):
    return {path.name for path in folder.glob(f"*{programs.SUFFIX}")}


def state_of(model=None, tx=None, **options):
    model = model or models.SoftmaxRegression()
    return create_state(model, tx or optax.adam(1e-3), **options)


def predict(state, images):
    return jax.device_get(programs.call(predict_step, OUTPUTS, state, images))


def test_later_commands_do_not_trace_the_programs_of_a_run(tmp_path):
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path),
        "JAX_LOG_COMPILES": "1",
    }

    def traced(command, workdir, *flags):
        place = f"--workdir={tmp_path / workdir}", "--num_cpu_devices=1", "-v"
        done = subprocess.run(
            [sys.executable, "-m", "flaxmnist", command, *place, *flags],
            capture_output=True,
            text=True,
            timeout=300,
            env=environment | {"FLAXMNIST_CACHE_DIR": str(tmp_path / "cache")},
        )
        assert done.returncode == 0, done.stderr
        return set(re.findall(r"Finished tracing.* (\w+) for ", done.stderr))

    smoke = "--config=softmax:smoke"
    steps = {"train_steps", "eval_steps", "norms", "all_finite", "_predict"}
    assert steps < traced("train", "first", smoke)
    # The shapes of the state are found by tracing.
    assert traced("train", "again", smoke, "--config.seed=1") & (steps | {"_init"}) == {
        "_init"
    }
    assert "eval_steps" in traced("eval", "first")  # Its state has no optimizer.
    assert not traced("eval", "first") & steps


def test_a_kept_program_returns_the_same_bits_and_is_not_traced(
    kept, synthetic, monkeypatch
):
    def train(updates):
        state = state_of(models.MLP(hidden=(16,)))
        for start in range(0, 50 * updates, 50):
            batch = batch_of(synthetic.train, 50, start)
            like = state, Metrics.empty(10, state.metrics)
            state, found = programs.call(train_step, like, state, batch)
        return jax.device_get((state.params, found.compute()))

    first = train(3)
    assert len(names(kept)) == 1
    begin_process()
    monkeypatch.setattr(programs, "_compile", None)
    jax.tree.map(np.testing.assert_array_equal, train(3), first)
    assert read_once()


def test_every_static_part_of_a_program_tells_it_from_others(kept, synthetic):
    images = synthetic.test.images[:8]
    batch = batch_of(synthetic.train, 8, 0)
    one = state_of(models.MLP(hidden=(16,)))
    states = [
        one,
        state_of(models.MLP(hidden=(16,), activation="tanh")),
        state_of(models.MLP(hidden=(17,))),
        dataclasses.replace(one, model=Translated(one.model)),
    ]
    found = []
    for state in states:
        begin_process()
        found.append(predict(state, images)["logits"])
    assert len(names(kept)) == len(states)
    assert not np.array_equal(found[0], found[3])
    trained = [
        state_of(tx=optax.adam(1e-3)),
        state_of(tx=optax.adam(2e-3)),
        state_of(tx=optax.adam(1e-3), loss=losses.CrossEntropy(label_smoothing=0.1)),
        state_of(tx=optax.adam(1e-3), augment=Augment(crop=1)),
        state_of(tx=optax.adam(1e-3), augment=Augment(crop=2)),
        state_of(tx=optax.adam(1e-3), augment=Augment(crop=2), augment_until=5),
        state_of(tx=optax.adam(1e-3), ema_decay=0.9),
        state_of(tx=optax.adam(1e-3), grad_accumulation=2),
        state_of(tx=optax.adam(1e-3), loss=losses.Focal(gamma=1.0)),
        state_of(tx=optax.adam(1e-3), loss=jax.jit(losses.Focal(gamma=1.0).__call__)),
        state_of(tx=optax.adam(1e-3), loss=jax.jit(losses.Focal(gamma=2.0).__call__)),
        state_of(models.SoftmaxRegression(dtype="bfloat16"), optax.adam(1e-3)),
        state_of(tx=optax.adam(1e-3), metrics=metrics.build(("top5",))),
    ]
    for number, state in enumerate(trained, 1):
        like = state, Metrics.empty(10, state.metrics)
        programs.call(train_step, like, state, batch)
        assert len(names(kept)) == len(states) + number
    predict(one, images[:7])
    assert len(names(kept)) == len(states) + len(trained) + 1


def test_a_program_with_code_of_the_user_is_not_kept(kept, synthetic):
    class Own(models.SoftmaxRegression):
        pass

    def first(logits, labels):
        return logits[:, 0]

    batch = batch_of(synthetic.train, 8, 0)
    for state in (
        state_of(Own()),
        state_of(tx=optax.sgd(lambda step: 0.1)),
        state_of(loss=lambda logits, labels: logits.sum(axis=-1)),
        state_of(loss=jax.jit(functools.wraps(optax.softmax_cross_entropy)(first))),
        state_of(metrics={"first": first}),
    ):
        found = programs.call(eval_step, None, state, batch)
        assert found.count == 8
    assert not names(kept)


@pytest.mark.parametrize(
    "damage", [lambda content: content[:-9], lambda content: b"", lambda content: b"x"]
)
def test_a_damaged_program_is_compiled_again(kept, synthetic, monkeypatch, damage):
    state, images = state_of(), synthetic.test.images[:8]
    expected = predict(state, images)
    (path,) = kept.glob(f"*{programs.SUFFIX}")
    path.write_bytes(damage(path.read_bytes()))
    begin_process()
    np.testing.assert_array_equal(predict(state, images)["logits"], expected["logits"])
    begin_process()
    monkeypatch.setattr(programs, "_compile", None)
    predict(state, images)
    assert read_once()


def test_a_program_that_jax_has_read_from_its_cache_is_kept_whole(
    kept, synthetic, monkeypatch
):
    state, images = state_of(), synthetic.test.images[:8]
    times = "jax_persistent_cache_min_compile_time_secs"
    former = jax.config.values[times]
    jax.config.update(times, 0.0)
    try:
        for _ in range(2):  # The second time, JAX reads it.
            predict_step.clear_cache()
            expected = predict_step(state, images)
    finally:
        jax.config.update(times, former)
    predict(state, images)
    begin_process()
    monkeypatch.setattr(programs, "_compile", None)
    np.testing.assert_array_equal(predict(state, images)["logits"], expected["logits"])
    assert read_once()


def test_a_program_that_cannot_be_saved_is_called(kept, synthetic, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(programs, "write_file", fail)
    state, images = state_of(), synthetic.test.images[:8]
    logits = predict(state, images)["logits"]
    np.testing.assert_array_equal(logits, predict_step(state, images)["logits"])
    assert read_once()
    assert not names(kept)


def test_errors_of_a_call_are_those_of_the_function(kept, synthetic):
    with pytest.raises(UserError, match=r"expected .*28"):
        predict(state_of(), synthetic.test.images[:8, :5])
    assert not names(kept)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (programs, "_source"),
        (machine, "versions"),
        (machine, "cpu_kind"),
        (machine, "cpu_threads"),
    ],
)
def test_another_environment_makes_other_programs(
    kept, synthetic, monkeypatch, module, name
):
    state, images = state_of(), synthetic.test.images[:8]
    predict(state, images)
    begin_process()
    monkeypatch.setattr(module, name, lambda *_: "other")
    predict(state, images)
    assert len(names(kept)) == 2


def test_options_of_jax_and_xla_make_other_programs(kept, synthetic, monkeypatch):
    state, images = state_of(), synthetic.test.images[:8]
    predict(state, images)
    begin_process()
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    predict(state, images)
    assert len(names(kept)) == 2
    begin_process()
    jax.config.update("jax_default_matmul_precision", "highest")
    try:
        predict(state, images)
    finally:
        jax.config.update("jax_default_matmul_precision", None)
    assert len(names(kept)) == 3


def test_edited_source_has_another_hash(tmp_path, monkeypatch):
    package = tmp_path / "package"
    (package / "training").mkdir(parents=True)
    monkeypatch.setattr(programs, "__file__", str(package / "training/programs.py"))
    hashes = set()
    for name, source in (("a.py", "1"), ("a.py", "2"), ("b.py", "2")):
        path = package / name
        path.write_text(source)
        programs._source.cache_clear()
        hashes.add(programs._source())
        path.unlink()
    programs._source.cache_clear()
    assert len(hashes) == 3


def test_a_wrong_structure_of_the_result_is_not_kept(kept, synthetic):
    found = programs.call(predict_step, {"x": 0}, state_of(), synthetic.test.images[:8])
    assert found.keys() == OUTPUTS.keys()
    assert not names(kept)


def test_the_programs_that_were_not_used_for_longest_are_deleted(
    kept, synthetic, monkeypatch
):
    monkeypatch.setattr(programs, "MAX_FILES", 2)
    state, images, made = state_of(), synthetic.test.images, {}
    for count in (1, 2, 1, 3):
        begin_process()
        before = names(kept)
        predict(state, images[:count])
        made |= dict.fromkeys(names(kept) - before, count)
    assert sorted(made[name] for name in names(kept)) == [1, 3]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("jax_debug_nans", True),
        ("jax_disable_jit", True),
        ("jax_enable_compilation_cache", False),
        ("jax_compilation_cache_dir", None),
        ("jax_compilation_cache_dir", "gs://bucket/programs"),
    ],
)
def test_options_of_jax_decide_whether_programs_are_kept(
    kept, synthetic, monkeypatch, option, value
):
    monkeypatch.chdir(kept)
    state, images = state_of(), synthetic.test.images[:8]
    # JAX itself would look for a program in the bucket.
    predict_step(state, images)
    former = jax.config.values[option]
    jax.config.update(option, value)
    try:
        predict(state, images)
    finally:
        jax.config.update(option, former)
    assert not [*kept.rglob(f"*{programs.SUFFIX}")]
