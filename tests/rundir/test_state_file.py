"""`save_state` and `load_state` keep every array of a state in one file."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_identical, batch_of

import flaxmnist
from flaxmnist import CNN, MLP, UserError, train_step
from flaxmnist.runtime import durable

TX = optax.adam(1e-2)


def new_state(model=None, tx=TX, seed=0):
    model = model or MLP(hidden=(4,), batch_norm=True, dropout_rate=0.5)
    return flaxmnist.create_state(model, tx, seed, ema_decay=0.9)


def numbers(state):
    return jax.device_get(state.replace(key=jax.random.key_data(state.key)))


@pytest.fixture
def trained(synthetic):
    state, _ = train_step(new_state(), batch_of(synthetic.train, 20))
    return state


def test_a_loaded_state_continues_like_the_saved_one(trained, synthetic, tmp_path):
    path = tmp_path / "state.npz"
    flaxmnist.save_state(path, trained)
    loaded = flaxmnist.load_state(path, like=new_state(seed=7))
    assert_identical(numbers(loaded), numbers(trained))
    batch = batch_of(synthetic.train, 20, start=20)
    states = [train_step(state, batch)[0] for state in (trained, loaded)]
    assert_identical(*map(numbers, states))
    assert [item.name for item in tmp_path.iterdir()] == ["state.npz"]


def test_arrays_of_any_dtype_are_kept(tmp_path):
    tree = {"a": jnp.arange(3, dtype=jnp.bfloat16), "b": jnp.zeros((), bool)}
    tree["file"] = tree["allow_pickle"] = jnp.ones((2, 0))
    flaxmnist.save_state(tmp_path / "tree", tree)
    loaded = flaxmnist.load_state(tmp_path / "tree", tree)
    assert_identical(loaded, tree)
    assert loaded["a"].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("tree", "name"),
    [
        ({"a": 1}, "state: a=1"),
        ("text", "state='text'"),
        (jax.eval_shape(lambda: jnp.ones(3)), "state=ShapeDtypeStruct.*"),
    ],
)
def test_a_state_without_arrays_is_refused(tree, name, tmp_path):
    with pytest.raises(UserError, match=f"^{name}: expected a TrainState, or a tree"):
        flaxmnist.save_state(tmp_path / "state", tree)
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match=name.replace("state", "like")):
        flaxmnist.load_state(tmp_path / "state", tree)


@pytest.mark.parametrize("path", [".", "/"])
def test_a_path_without_a_name_is_refused(path):
    with pytest.raises(UserError, match=f"^path='{path}': expected the name of a file"):
        flaxmnist.save_state(path, {"a": jnp.ones(3)})


def test_a_lack_of_memory_is_no_damage(tmp_path, monkeypatch):
    def no_memory(*args, **options):
        raise MemoryError

    flaxmnist.save_state(tmp_path / "state", tree := {"a": jnp.ones(3)})
    monkeypatch.setattr(np.lib.format, "read_array", no_memory)
    with pytest.raises(MemoryError):
        flaxmnist.load_state(tmp_path / "state", tree)


def test_an_interrupted_save_leaves_the_former_file(trained, tmp_path, monkeypatch):
    path = tmp_path / "state.npz"
    flaxmnist.save_state(path, trained)
    before = path.read_bytes()

    def killed(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(durable, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        flaxmnist.save_state(path, new_state(seed=1))
    assert path.read_bytes() == before


def test_a_damaged_or_different_file_is_refused(trained, tmp_path):
    path = tmp_path / "state.npz"
    with pytest.raises(UserError, match=r"state.npz cannot be read \(No such file"):
        flaxmnist.load_state(path, trained)
    flaxmnist.save_state(path, trained)
    for other, said in (
        (new_state(MLP(hidden=(5,), batch_norm=True)), r"float32 \[4\] in the file, "),
        (new_state(CNN(features=(2,), hidden=())), "float32 .* missing in the state"),
        (new_state(tx=optax.sgd(0.1)), "opt_state/0/count is int32 .* missing"),
    ):
        with pytest.raises(UserError, match=f"does not match this state: .*{said}"):
            flaxmnist.load_state(path, other)
    twice = {"a/b": jnp.ones(1), "a": {"b": jnp.ones(1)}}
    with pytest.raises(UserError, match="two arrays have the same name"):
        flaxmnist.save_state(tmp_path / "twice", twice)
    halves = {"a": jnp.ones(4, jnp.bfloat16)}
    flaxmnist.save_state(tmp_path / "halves", halves)
    for dtype in (jnp.float16, jnp.float32):
        with pytest.raises(UserError, match="does not match this state: a is"):
            flaxmnist.load_state(tmp_path / "halves", {"a": jnp.ones(4, dtype)})
    whole = path.read_bytes()
    refused = 0
    for place in range(0, len(whole), 67):
        damaged = bytearray(whole)
        damaged[place] ^= 255
        path.write_bytes(damaged)
        try:  # Some bytes do not affect the arrays, such as a modification time.
            loaded = flaxmnist.load_state(path, trained)
            assert_identical(numbers(loaded), numbers(trained))
        except UserError:
            refused += 1
    assert refused > len(whole) / 67 / 2
