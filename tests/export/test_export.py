"""Models taken away: what is written predicts what the checkpoint does."""

import contextlib
import itertools
import json
import re
import shutil
import struct
import subprocess
import sys
import types
from pathlib import Path

import jax
import jax.export
import jaxlib
import numpy as np
import optax
import pytest

from flaxmnist.cli import export
from flaxmnist.core import models
from flaxmnist.core.state import create_state
from flaxmnist.core.steps import predict_step
from flaxmnist.errors import ParityError
from flaxmnist.export import card as cards
from flaxmnist.export import numpy_predictor, parity, write
from flaxmnist.inference.saved_run import open_run
from flaxmnist.rundir import folder as workdirs
from flaxmnist.runtime import durable, files


@pytest.fixture
def workdir(finished_run, tmp_path):
    """A copy of a finished run."""
    return shutil.copytree(finished_run[0], tmp_path / "run")


@pytest.fixture(scope="module")
def images(synthetic):
    return synthetic.test.images[:7]


def test_stablehlo_takes_any_batch_on_every_platform(workdir, images, capsys):
    assert export.main([f"--workdir={workdir}", "--format=stablehlo"]) == 0
    assert "over 500 test images" in capsys.readouterr().out
    folder = workdir / "export" / "stablehlo"
    program = (folder / "model.stablehlo").read_bytes()
    assert str(Path(export.__file__).parents[1]).encode() not in program
    model = jax.export.deserialize(program)
    assert set(model.platforms) == {"cpu", "cuda", "tpu"}
    wanted = predict_step(open_run(workdir).state, images)
    for count in (1, 7):
        found = jax.jit(model.call)(images[:count, ..., None])
        np.testing.assert_allclose(found["logits"], wanted["logits"][:count], atol=1e-5)
    card = (folder / "README.md").read_text()
    # With JAX 0.7, `import jax` does not load it.
    assert "import jax.export\n" in card
    temperature = open_run(workdir).calibration.temperature
    assert f"softmax(logits / {temperature:.4g})" in card
    assert f"jaxlib {jaxlib.__version__} wrote" in card
    assert "up to 6 months newer" in card


def test_safetensors_has_the_variables_of_the_checkpoint(workdir):
    folder = open_run(workdir).export("safetensors")
    content = (folder / "model.safetensors").read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    assert length % 8 == 0
    header = json.loads(content[8 : 8 + length])
    assert header.pop("__metadata__") == {"format": "flax"}
    params = open_run(workdir).state.eval_params
    assert len(header) == len(jax.tree.leaves(params))
    for name, entry in header.items():
        _, layer, kind = name.split(".")
        array = np.frombuffer(
            content[8 + length :][slice(*entry["data_offsets"])], "<f4"
        )
        assert entry["dtype"] == "F32"
        np.testing.assert_array_equal(
            array.reshape(entry["shape"]), params[layer][kind]
        )
    config = json.loads((folder / "config.json").read_text())
    assert config["architecture"] == "CNN"
    rebuilt = models.CNN(**config["options"], dtype="float32")
    assert rebuilt == open_run(workdir).state.model
    assert (config["image_shape"], config["members"]) == ([28, 28, 1], 0)


def test_the_card_of_safetensors_begins_with_metadata(workdir):
    yaml = pytest.importorskip("yaml")
    text = (open_run(workdir).export("safetensors") / "README.md").read_text()
    _, head, body = text.split("---\n", 2)
    found = yaml.safe_load(head)
    (model,) = found["model-index"]
    (result,) = model["results"]
    accuracy = workdirs.saved_summary(workdir).test.accuracy
    assert result["metrics"] == [{"type": "accuracy", "value": accuracy}]
    assert (found["license"], found["metrics"]) == ("unknown", ["accuracy"])
    assert "datasets" not in found  # These images are not on the hub.
    assert body.startswith("\n# cnn, trained on")


def example(card):
    """The Python code of a card."""
    return re.search(r"```python\n(.*?)```", card.read_text(), re.S)[1]


@pytest.mark.parametrize("format", ["stablehlo", "onnx", "safetensors"])
def test_the_example_of_the_card_runs(format, workdir, monkeypatch, capsys):
    if format == "onnx":
        pytest.importorskip("onnxruntime", reason="needs 'flaxmnist[onnx]'")
    if format == "safetensors":
        pytest.importorskip("safetensors", reason="needs the package safetensors")
    with jax.numpy_rank_promotion("allow"):
        folder = open_run(workdir).export(format)
    monkeypatch.chdir(folder)
    capsys.readouterr()
    exec(example(folder / "README.md"), {})
    # Ten numbers for each of the five images.
    assert len(re.findall(r"\d+\.\d*", capsys.readouterr().out)) == 50


@pytest.mark.parametrize("format", ["numpy", "stablehlo"])
def test_an_export_is_written_to_the_directory_that_the_user_names(
    format, workdir, tmp_path, monkeypatch, capsys
):
    folder = tmp_path / "a" / "b"
    flags = [f"--workdir={workdir}", f"--format={format}"]
    assert export.main([*flags, f"--output={folder}"]) == 0
    before = names(folder)
    assert {"README.md", "labels.txt"} < set(before)
    assert not (workdir / "export").exists()
    (tmp_path / "link").symlink_to(folder)
    (folder / "labels.txt").write_text("former")
    assert export.main([*flags, f"--output={tmp_path / 'link'}"]) == 0
    assert (folder / "labels.txt").read_text() != "former"
    assert (names(folder), names(folder.parent)) == (before, ["b"])
    monkeypatch.chdir(folder)
    assert export.main([*flags, "--output=."]) == 2
    assert "is the current directory or contains it" in capsys.readouterr().err


def test_a_directory_with_files_of_the_user_is_not_replaced(workdir, tmp_path, capsys):
    for name in ("README.md", "predict.py"):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / name).write_text("of the user")
        flags = [f"--workdir={workdir}", "--format=numpy", f"--output={folder}"]
        assert export.main(flags) == 2
        assert f"contains '{name}', which export did not" in capsys.readouterr().err
        assert (folder / name).read_text() == "of the user"


def test_numpy_alone_predicts_the_same(workdir, images, tmp_path):
    assert export.main([f"--workdir={workdir}", "--format=numpy"]) == 0
    np.save(tmp_path / "images.npy", images)
    # Any package but NumPy ends it.
    script = "import runpy, sys\n"
    script += (
        "for name in ('jax', 'flax', 'flaxmnist', 'scipy'): sys.modules[name] = None\n"
    )
    script += (
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    path = workdir / "export" / "numpy" / "predict.py"
    done = subprocess.run(
        [sys.executable, "-I", "-c", script, str(path), str(tmp_path / "images.npy")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    classes = predict_step(open_run(workdir).state, images)["classes"]
    assert [int(line.split()[0]) for line in done.stdout.splitlines()] == [*classes]
    done = subprocess.run(
        [sys.executable, str(path), "nowhere.npy"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith("nowhere.npy: ")


def test_a_file_without_an_array_ends_the_numpy_script_in_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(numpy_predictor, "__file__", str(tmp_path / "predict.py"))
    (tmp_path / "labels.txt").write_text("0\n1")
    archive = tmp_path / "archive.npz"
    np.savez(archive, images=np.zeros((2, 28, 28), np.uint8))
    content = archive.read_bytes()
    for name, part in (("full", content), ("cut", content[:60]), ("empty", b"")):
        path = tmp_path / name
        path.write_bytes(part)
        monkeypatch.setattr(sys, "argv", ["predict.py", str(path)])
        with pytest.raises(SystemExit, match=rf"\A{re.escape(str(path))}: .+\Z"):
            numpy_predictor.main()


@pytest.mark.parametrize(
    "model",
    [
        models.SoftmaxRegression(),
        models.MLP(hidden=(9, 5), activation="softplus"),
        models.MLP(hidden=(9,), activation="sigmoid", batch_norm=True),
        models.CNN(features=(3, 4), hidden=(), activation="tanh", pool="average"),
        models.CNN(features=(3, 4), hidden=(6,), padding="VALID", batch_norm=True),
        models.CNN(features=(3,), hidden=(6,), strides=(2, 3), kernel_size=(4, 5)),
        models.CNN(features=(3, 2), hidden=(6,), strides=(2, 2), pool=None),
        models.ConvNet(layers="4C5S2V-MP3-R-BN-3C3-AP2-SE-D-5N-BN-6N"),
        models.ConvNet(layers="4C3-R-MP2-SE-AP"),
    ],
    ids=str,
)
def test_every_layer_is_known_to_numpy(model, make_state, images, tmp_path):
    state = make_state(model, seed=1)
    # Statistics and biases as training might leave them.
    noise = jax.tree.map(
        lambda leaf: leaf + 0.1 * np.random.default_rng(0).random(leaf.shape),
        {"params": state.params, "model_state": state.model_state},
    )
    state = state.replace(**noise)
    found = write.FORMATS["numpy"](state, tmp_path, None)(images)
    wanted = predict_step(state, images)["logits"]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-4)


def test_numpy_predicts_images_of_another_shape(tmp_path):
    model = models.CNN(features=(3, 2), hidden=(6,), num_classes=4)
    state = create_state(model, optax.identity(), image_shape=(9, 14, 2))
    images = np.random.default_rng(0).integers(0, 256, (5, 9, 14, 2)).astype(np.uint8)
    found = write.FORMATS["numpy"](state, tmp_path, None)(images)
    wanted = predict_step(state, images)["logits"]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-4)


def test_numpy_takes_floats_as_the_package_does(make_state, images, tmp_path):
    state = make_state()
    write.FORMATS["numpy"](state, tmp_path, None)
    model = numpy_predictor.load(tmp_path / "weights.npz")
    wanted = predict_step(state, images)["logits"]
    for dtype in (np.float16, np.float32, np.float64):
        found = numpy_predictor.logits(model, (images / 255).astype(dtype))
        np.testing.assert_allclose(
            found, wanted, atol=1e-2 if dtype().itemsize < 4 else 1e-5
        )
    for wrong in (images.astype(np.float32), images / 255 - 0.01, images * np.nan):
        with pytest.raises(ValueError, match="values outside"):
            numpy_predictor.logits(model, wrong)
    for dtype in (bool, np.int64, np.uint16):
        with pytest.raises(ValueError, match="expected uint8, or floating point in"):
            numpy_predictor.logits(model, images.astype(dtype))


def test_onnx_predicts_the_same(workdir, images, capsys):
    pytest.importorskip("jax2onnx", reason="needs 'flaxmnist[onnx]'")
    onnxruntime = pytest.importorskip("onnxruntime")
    # The converter's own code is not as strict as these tests.
    with jax.numpy_rank_promotion("allow"):
        assert export.main([f"--workdir={workdir}", "--format=onnx"]) == 0
    path = workdir / "export" / "onnx" / "model.onnx"
    session = onnxruntime.InferenceSession(path)
    name = session.get_inputs()[0].name
    wanted = predict_step(open_run(workdir).state, images)["logits"]
    for count in (1, 7):
        given = images[:count, ..., None].astype(np.float32) / 255
        (found,) = session.run(None, {name: given})
        np.testing.assert_allclose(found, wanted[:count], atol=1e-5)


@pytest.mark.parametrize(
    "model",
    [
        models.CNN(features=(20, 4), hidden=(8,), batch_norm=True),
        # A network that would also run without its pooling.
        models.ConvNet(layers="8C3-MP2-4C3-BN-MP2-AP"),
    ],
)
def test_onnx_pools_as_the_model_does(model, make_state, images, tmp_path):
    pytest.importorskip("jax2onnx", reason="needs 'flaxmnist[onnx]'")
    state = make_state(model)
    with jax.numpy_rank_promotion("allow"):
        run = write.FORMATS["onnx"](state, tmp_path, None)
    images = images[..., None]
    wanted = predict_step(state, images)["logits"]
    np.testing.assert_allclose(run(images), wanted, atol=1e-5)


def test_the_card_says_what_the_model_is(workdir):
    folder = open_run(workdir).export("numpy")
    card = (folder / "README.md").read_text()
    summary = workdirs.saved_summary(workdir)
    assert f"{summary.test.accuracy:.2%}" in card
    assert f"{summary.model.parameters:,} parameters" in card
    for part in ("28×28", "centre of mass", "licence", "fingerprint", "flaxmnist 0."):
        assert part in card
    assert "10 classes, in this order: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9." in card
    assert "The licence of the images is that of flaxmnist" in card


def test_the_card_of_onnx_names_its_file_of_parameters(finished_run):
    dataset = workdirs.saved_summary(finished_run[0]).dataset
    card = cards.Card(
        "onnx", "cnn", "CNN", {}, 0, 1, "step 1", True, None, dataset, None, {}, ""
    )
    files = ["model.onnx", "labels.txt"]
    assert "model.onnx.data" not in card.render(0.0, files)
    assert "`model.onnx.data`: the parameters" in card.render(
        0.0, [*files, "model.onnx.data"]
    )


def test_the_card_of_a_moved_run_says_what_is_not_known(workdir, capsys):
    (workdir / "summary.json").unlink()
    text = (workdir / "config.json").read_text()
    moved = text.replace('"source": "synthetic"', '"source": "idx"')
    (workdir / "config.json").write_text(moved)
    card = (open_run(workdir).export("numpy") / "README.md").read_text()
    for part in (
        "trained on data named synthetic",
        "test accuracy was not measured",
        "The licence of the images is not known",
        "on 1,000 generated images",
    ):
        assert part in card
    assert "over 1,000 generated images" in capsys.readouterr().out


def test_images_are_compared_in_parts_on_the_cpu(workdir, monkeypatch):
    sizes = []

    def write_nothing(state, folder, card):
        def predict(images):
            sizes.append(len(images))
            # Other devices round the factors of products.
            assert jax.config.jax_default_device.platform == "cpu"
            return np.asarray(predict_step(state, images)["logits"])

        return predict

    monkeypatch.setitem(write.FORMATS, "numpy", write_nothing)
    monkeypatch.setattr(write, "_PIXELS", 300 * 28 * 28)
    open_run(workdir).export("numpy")
    assert sizes == [300, 200]


def test_what_differs_is_not_kept(workdir, monkeypatch, capsys):
    assert export.main([f"--workdir={workdir}", "--format=numpy"]) == 0
    folder = workdir / "export" / "numpy"
    before = {path: path.read_bytes() for path in folder.iterdir()}
    logits = numpy_predictor.logits
    monkeypatch.setattr(numpy_predictor, "logits", lambda *given: logits(*given) + 1e-2)
    assert export.main([f"--workdir={workdir}", "--format=numpy"]) == 1
    assert "checkpoint is 1.0e-02; expected at most " in (
        error := capsys.readouterr().err
    )
    assert "The export was not kept" in error
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["numpy"]


def test_large_logits_may_differ_by_as_many_digits(make_state, images, tmp_path):
    state = make_state(models.MLP(hidden=(64, 64)))
    state = state.replace(params=jax.tree.map(lambda leaf: 30 * leaf, state.params))
    found = write.FORMATS["numpy"](state, tmp_path, None)(images)
    wanted = np.asarray(predict_step(state, images)["logits"])
    assert abs(found - wanted).max() > parity.TOLERANCE
    parity.check_parity(found, wanted)
    for wrong in (wanted * 1.001, wanted * np.nan):
        with pytest.raises(ParityError):
            parity.check_parity(wrong, wanted)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("done", [0, 1, 2])
def test_an_export_killed_while_it_is_exchanged_leaves_a_whole_one(
    done, workdir, monkeypatch
):
    folder = workdir / "export" / "numpy"
    folder.mkdir(parents=True)
    (folder / "README.md").write_text("former")
    (folder / "labels.txt").touch()
    replace, count = durable.replace, itertools.count()

    def replace_until_killed(source, target):
        if next(count) == done:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        # A killed process cleans nothing up.
        patch.setattr(files.shutil, "rmtree", lambda *args, **options: None)
        with files.partial_folder(folder.parent) as partial:
            (partial / "numpy").mkdir()
            (partial / "numpy" / "README.md").write_text("new")
            patch.setattr(durable, "replace", replace_until_killed)
            patch.setattr(write, "_put_back", lambda partial: None)
            write._exchange(partial / "numpy", folder)
    assert folder.exists() == (done != 1)
    with files.partial_folder(folder.parent, write._put_back):  # Of any format.
        assert (folder / "README.md").read_text() == ("new" if done == 2 else "former")
    assert names(folder.parent) == ["numpy"]


def test_an_export_that_fails_leaves_the_former_one_and_two_do_not_meet(
    workdir, monkeypatch
):
    folder = open_run(workdir).export("numpy")
    card = (folder / "README.md").read_text()
    (folder / "README.md").write_text("former")
    with files.partial_folder(folder.parent, write._put_back) as other:
        (other / "file").touch()
        with monkeypatch.context() as patch:
            patch.setattr(cards.Card, "render", lambda *args: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                open_run(workdir).export("numpy")
        assert (folder / "README.md").read_text() == "former"
        open_run(workdir).export("numpy")  # While the other is being made.
        assert (folder / "README.md").read_text() == card
        assert (other / "file").exists()
    assert names(folder.parent) == ["numpy"]


def test_an_export_does_not_replace_what_no_export_wrote(workdir, capsys):
    folder = open_run(workdir).export("numpy")
    (folder / "notes.txt").write_text("of the user")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert export.main([f"--workdir={workdir}", "--format=numpy"]) == 2
    assert "contains 'notes.txt', which export did not" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert names(folder.parent) == ["numpy"]


def test_a_mistake_is_told(workdir, tmp_path, monkeypatch, capsys):
    for flags, message in (
        ([f"--workdir={tmp_path / 'no'}", "--format=numpy"], "contains no run"),
        ([f"--workdir={workdir}", "--format=onx"], "invalid choice: 'onx'"),
        (
            [f"--workdir={workdir}", "--format=numpy", "--step=3"],
            "checkpoint 3 does not exist",
        ),
    ):
        assert export.main(flags) == 2
        assert message in capsys.readouterr().err
    converter = types.SimpleNamespace(to_onnx=lambda *given, **options: [][0])
    monkeypatch.setitem(sys.modules, "onnxruntime", types.ModuleType("onnxruntime"))
    monkeypatch.setitem(sys.modules, "jax2onnx", converter)
    assert export.main([f"--workdir={workdir}", "--format=onnx"]) == 2
    error = capsys.readouterr().err
    assert "jax2onnx cannot convert CNN (IndexError: list index out of range)" in error
    assert "use --format stablehlo" in error
    assert not (workdir / "export" / "onnx").exists()
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    assert export.main([f"--workdir={workdir}", "--format=onnx"]) == 2
    assert "pip install 'flaxmnist[onnx]'" in capsys.readouterr().err
