"""The door of Python: a model is trained, and its run is used, in one program."""

import numpy as np
import optax
import pytest

import flaxmnist
from flaxmnist import UserError
from flaxmnist.data import Dataset
from flaxmnist.inference import train as door

NAMES = ("dark", "bright")


def make(count):
    """Returns images whose bright half gives their class, and labels."""
    labels = np.arange(count) % 2
    images = np.zeros((count, 8, 8), np.uint8)
    images[labels == 1, :4] = 200
    return images, labels


def own_optimizer(learning_rate, decay: float = 0.5):
    return optax.sgd(learning_rate, momentum=decay)


def own_schedule(learning_rate, total_steps):
    return lambda step: learning_rate * (1 - step / total_steps) ** 0.5


def own_loss(logits, labels, power: float = 1.0):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels) ** power


def test_arrays_are_trained_on_and_the_run_knows_them(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    dataset = Dataset.from_arrays(make(120), make(20), NAMES, name="<i>")
    options = {"batch_size": 10, "mesh": {"data": 1}, "report": False}
    optimizer = {"name": own_optimizer, "decay": 0.9, "schedule": own_schedule}
    options |= {"num_steps": 20, "optimizer": optimizer}
    options |= {"loss": {"name": own_loss, "power": 2}}
    seen = []
    run = flaxmnist.train("softmax", data=dataset, hooks=[seen.append], **options)
    assert run.workdir.parent.name == "runs"
    assert run.workdir.name.startswith("softmax-2")
    assert (run.config.num_epochs, run.config.num_steps) == (None, 20)
    assert (run.config.optimizer.decay, run.config.loss.power) == (0.9, 2.0)
    assert seen[-1] == run.summary
    assert run.evaluate().accuracy == run.summary.test.accuracy == 1
    images, labels = make(4)
    assert [one.label for one in run.predict(images)] == [NAMES[k] for k in labels]
    text = run._repr_html_()
    assert "step 20, on &lt;i&gt; (arrays)<table>" in text
    assert "<tr><th>test<td>" in text
    assert f"<td>100.00%<td>20</table><code>{run.workdir}</code>" in text
    (run.workdir / "report.html").touch()
    assert f"<code>{run.workdir / 'report.html'}</code>" in run._repr_html_()

    pairs = (make(120), make(20))
    with pytest.raises(UserError, match=r"with 'dark' as class 0, but .* now has '0'"):
        flaxmnist.train(run.config, run.workdir, data=pairs, num_steps=30)
    longer = flaxmnist.train(run.config, run.workdir, data=dataset, num_steps=30)
    assert "resumes at step 20 of 30" in capsys.readouterr().out
    assert longer.last_step == 30


DATA = {
    "fashion_mnist": {"data.name": "fashion_mnist", "data.source": "auto"},
    "synthetic": {"data.source": "synthetic"},
    "some/place": {"data.source": "auto", "data.dir": "/some/place"},
}


@pytest.mark.parametrize(("given", "expected"), DATA.items())
def test_data_are_named_and_options_may_be_short(given, expected, monkeypatch):
    seen = []
    monkeypatch.setattr(
        door, "train_and_evaluate", lambda *args: seen.append(args) or 1 / 0
    )
    monkeypatch.setattr("os.getcwd", lambda: "/")
    with pytest.raises(ZeroDivisionError):
        flaxmnist.train(
            "cnn", "run", data=given, learning_rate=0.5, seed=3, model={"hidden": 7}
        )
    config = flaxmnist.config.resolve(seen[0][0])
    assert config.optimizer.learning_rate == 0.5
    assert (config.seed, config.data.split_seed) == (3, 0)
    assert config.model.hidden == (7,)
    for key, value in expected.items():
        assert getattr(config.data, key.removeprefix("data.")) == value


MISTAKES = [
    ({"name": "mlp"}, r"option 'name' is ambiguous; expected one of augment.name, d"),
    ({"learning_rat": 1}, r"unknown option 'learning_rat'.*optimizer.learning_rate"),
    ({"model": {"hiden": 1}}, r"unknown option 'model.hiden'; .*'model.hidden'"),
    ({"data": make(4)}, r"expected a Dataset, a name, a path, or arrays as \(\(train"),
    ({"data": 3}, r"data=3: expected a Dataset"),
    ({"data": "nowhere"}, r"data.dir='.*nowhere' does not exist"),
    ({"data": "fashion_mnst"}, r"does not exist; did you mean 'fashion_mnist'"),
    (
        {"data": (make(4), make(4)), "validation_share": 0.2},
        r"validation_share=0\.2 has no effect on this data set, which has its",
    ),
    ({"hooks": 3}, "hooks=3: expected a list of functions"),
]


@pytest.mark.parametrize(("given", "said"), MISTAKES)
def test_a_mistake_is_named_and_leaves_nothing(given, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said):
        flaxmnist.train("cnn", **given)
    assert not list(tmp_path.iterdir())


def test_a_population_is_named_like_the_options_of_a_run(monkeypatch, tmp_path):
    monkeypatch.setattr(door, "train_members", lambda *given: given)
    config, workdir, members, data = flaxmnist.train_population(
        "mlp:smoke", tmp_path, seeds=range(2), sweep={"learning_rate": [0.1, 0.2]}
    )
    assert (config.model.name, workdir, data) == ("mlp", tmp_path, None)
    assert members[1].options == {"optimizer.learning_rate": 0.1, "seed": 1}
    assert len(members) == 4
    with pytest.raises(flaxmnist.UserError, match="seeds and sweep are missing"):
        flaxmnist.train_population("mlp:smoke", tmp_path)
