"""A trained model, taken away: as StableHLO, as ONNX, or as arrays for NumPy."""

if __name__ == "__main__":
    from flaxmnist import startup

    startup.prepare()

import contextlib
import dataclasses
import json
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.export
import numpy as np

from flaxmnist import (
    analysis,
    cli,
    durable,
    files,
    models,
    numpy_predictor,
    ops,
    run_files,
)
from flaxmnist import workdir as workdirs
from flaxmnist.checks import UserError, path_of, shown
from flaxmnist.console import Console
from flaxmnist.inputs import IMAGE_SHAPE
from flaxmnist.restore import open_saved
from flaxmnist.state import TrainState
from flaxmnist.steps import predict_step
from flaxmnist.summary import summarize

_DESCRIPTION = """\
Takes a run's best model away, checked against the checkpoint, with a model card.

  %(prog)s --workdir runs/a --format stablehlo    (jax.export, for cpu, cuda and tpu)
  %(prog)s --workdir runs/a --format onnx         (needs 'flaxmnist[onnx]')
  %(prog)s --workdir runs/a --format numpy        (needs neither JAX nor flaxmnist)

--config.data.dir=DIR names the data of the run where they are now.
"""
PLATFORMS = ("cpu", "cuda", "tpu")
# A logit may differ by so much, plus so much of the largest logit: float32 has seven
# digits, and sums are taken in another order. Test images that are compared.
TOLERANCE, RELATIVE_TOLERANCE, CHECKED = 1e-4, 1e-5, 1_000
_FORMER = "former"
# All that an export writes. Anything else in its folder is the user's.
_FILES = {
    "README.md",
    "model.onnx",
    "model.onnx.data",
    "model.stablehlo",
    "predict.py",
    "weights.npz",
}
Logits = Callable[[np.ndarray], np.ndarray]


class ParityError(Exception):
    """What was exported does not predict what the checkpoint does."""


def _stablehlo(state: TrainState, folder: Path) -> Logits:
    """Writes a program that `jax.export.deserialize` reads, parameters included."""
    (batch,) = jax.export.symbolic_shape("batch")
    image = jax.ShapeDtypeStruct((batch, *IMAGE_SHAPE), np.uint8)
    predict = jax.jit(lambda images: predict_step(state, images))
    exported = jax.export.export(predict, platforms=PLATFORMS)(image)
    path = folder / "model.stablehlo"
    path.write_bytes(exported.serialize())
    again = jax.export.deserialize(bytearray(path.read_bytes()))
    return lambda images: np.asarray(jax.jit(again.call)(images[..., None])["logits"])


def _onnx(state: TrainState, folder: Path) -> Logits:
    """Writes an ONNX graph and runs it with onnxruntime."""
    try:
        import onnxruntime
        from jax2onnx import to_onnx
    except ImportError:
        raise UserError(
            "--format onnx needs jax2onnx and onnxruntime: "
            "pip install 'flaxmnist[onnx]'"
        ) from None
    path = folder / "model.onnx"
    variables = {"params": state.eval_params, **state.model_state}

    def logits(images):
        return state.model.apply(variables, images, train=False)

    to_onnx(
        logits,
        inputs=[jax.ShapeDtypeStruct(("batch", *IMAGE_SHAPE), np.float32)],
        return_mode="file",
        output_path=str(path),
    )
    for file in folder.iterdir():
        file.chmod(0o644)  # The converter keeps one to its owner.
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(images: np.ndarray) -> np.ndarray:
        scaled = images[..., None].astype(np.float32) / 255
        return session.run(None, {name: scaled})[0]

    return run


def _layers(state: TrainState) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """Returns the layers of one of our models as `numpy_predictor` reads them."""
    model: Any = state.model
    params, stats = state.eval_params, state.model_state.get("batch_stats", {})
    arrays: dict[str, np.ndarray] = {}
    layers: list[dict[str, Any]] = []

    def add(kind: str, name: str, given: Any, **options: Any) -> None:
        held = {key: np.asarray(array) for key, array in given.items()}
        arrays.update({f"{name}.{key}": array for key, array in held.items()})
        names = {key: f"@{name}.{key}" for key in held}
        layers.append({"kind": kind, **options, **names})

    def activate(index: int) -> None:
        name = f"BatchNorm_{index}"
        if name in params:
            own, seen = params[name], stats[name]
            scale = own["scale"] / np.sqrt(seen["var"] + nn.BatchNorm.epsilon)
            shift = own["bias"] - seen["mean"] * scale
            add("affine", name, {"scale": scale, "shift": shift})
        layers.append({"kind": "activation", "name": model.activation})

    activations = 0
    side: Sequence[int] = IMAGE_SHAPE[:2]
    for index, _ in enumerate(model.features if isinstance(model, models.CNN) else ()):
        pads = ops.explicit_padding(
            side, model.kernel_size, model.strides, model.padding
        )
        name = f"Conv_{index}"
        add("conv", name, params[name], strides=model.strides, padding=pads)
        side = tuple(
            (length + sum(pad) - kernel) // stride + 1
            for length, pad, kernel, stride in zip(
                side, pads, model.kernel_size, model.strides, strict=True
            )
        )
        activate(activations)
        activations += 1
        if model.pool is not None:
            layers.append({"kind": "pool", "name": model.pool})
            side = tuple(length // 2 for length in side)
    layers.append({"kind": "flatten"})
    hidden = getattr(model, "hidden", ())
    for index in range(len(hidden) + 1):
        name = f"Dense_{index}"
        add("dense", name, params[name])
        if index < len(hidden):
            activate(activations)
            activations += 1
    return layers, arrays


def _numpy(state: TrainState, folder: Path) -> Logits:
    """Writes weights and a script that needs NumPy alone."""
    layers, arrays = _layers(state)
    path = folder / "weights.npz"
    arrays["layers"] = np.array(json.dumps(layers))
    np.savez(path, **arrays)  # type: ignore[arg-type]
    shutil.copyfile(numpy_predictor.__file__, folder / "predict.py")
    read = numpy_predictor.load(path)
    return lambda images: numpy_predictor.logits(read, images)


FORMATS = {"stablehlo": _stablehlo, "onnx": _onnx, "numpy": _numpy}
_USE = {
    "stablehlo": """\
```python
import jax
import numpy as np

model = jax.export.deserialize(open("model.stablehlo", "rb").read())
images = np.zeros((5, 28, 28, 1), np.uint8)  # any number of them
print(model.call(images)["probabilities"])  # and "classes", "logits"
```""",
    "onnx": """\
```python
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
images = np.zeros((5, 28, 28, 1), np.float32)  # pixels divided by 255
print(session.run(None, {session.get_inputs()[0].name: images})[0])  # logits
```""",
    "numpy": """\
```bash
python predict.py images.npy    # uint8 [count, 28, 28]; NumPy alone is needed
```""",
}


def _card(
    name: str,
    summary: dict[str, Any],
    licence: str | None,
    best: str,
    difference: float,
    count: int,
) -> str:
    dataset, test = summary["dataset"], summary["test"]
    low, high = analysis.interval(
        round(test["accuracy"] * test["count"]), test["count"]
    )
    # Without published files, the name is only what the user called the data.
    trained_on = dataset["name"] if licence else f"data named {dataset['name']}"
    rights = f"is {licence}" if licence else "is not known"
    versions = ", ".join(f"{name} {v}" for name, v in summary["versions"].items())
    return f"""\
# {summary["model"]["name"]}, trained on {trained_on}

{summary["model"]["parameters"]:,} parameters. Test accuracy **{test["accuracy"]:.2%}**
(95 %: {low:.2%} to {high:.2%}, {test["count"]:,} images), by the checkpoint of step
{summary["evaluated_step"]:,}, {best}.

## Use

{_USE[name]}

## What it expects

Images of 28×28 pixels, one channel, white on black: the digit scaled into 20×20 keeping
its proportions, anti-aliased, and placed with its centre of mass in the middle, as
MNIST's are. `python -m flaxmnist.predict` makes them from any picture. The model has no
class for other input, which it still labels as some class.

## Where it comes from

Data: {dataset["name"]} ({dataset["source"]}), {dataset["counts"]["train"]:,} images,
fingerprint {dataset["fingerprint"]}. The licence of the images {rights}.
Trained with flaxmnist (Apache-2.0); {versions}.

Checked against the checkpoint on {count:,} test images: the largest difference of a
logit was {difference:.1e}.
"""


def export(
    workdir: str | Path,
    name: str,
    step: int | None = None,
    console: Any = None,
    overrides: Iterable[tuple[str, str]] = (),
) -> Path:
    """Writes a run's best model, or that of `step`, into ``export/<format>``.

    Args:
      workdir: the folder of the run.
      name: one of `FORMATS`.
      step: of the checkpoint.
      console: where to speak; the standard output if None.
      overrides: changes such as ``("data.dir", "/other/place")``.

    Returns:
      the folder.

    Raises:
      UserError: there is no such run, what the format needs is not installed, or the
        folder cannot be written.
      ParityError: what was written does not predict what the checkpoint does; it is
        not kept.
    """
    workdir, console = path_of(workdir, "workdir"), console or Console()
    run_files.check_links(workdir)
    best = "the best on validation" if step is None else "chosen by its number"
    run, state, step, last = open_saved(workdir, step, console, overrides)
    summary = workdirs.saved_summary(workdir)
    if summary is None or summary["evaluated_step"] != step:
        summary = summarize(run, state, last, step, console)

    # Off the mesh, which a program would otherwise demand, and in float32.
    state = jax.device_put(jax.device_get(state), jax.devices()[0])
    model = models.build(**run.config.model)
    state = dataclasses.replace(state, model=model, layout=None)
    images = run.dataset.test.images[:CHECKED]
    wanted = np.asarray(predict_step(state, images)["logits"])
    folder = workdir / "export" / name
    try:
        durable.make_directory(folder.parent)
        with files.partial_folder(folder.parent, _put_back) as partial:
            made = partial / name
            made.mkdir()
            found = FORMATS[name](state, made)(images)
            difference = _check_parity(found, wanted)
            console.line(
                f"{name}: largest difference to the checkpoint {difference:.1e}, over "
                f"{len(images):,} test images"
            )
            licence = run.dataset.licence
            card = _card(name, summary, licence, best, difference, len(images))
            (made / "README.md").write_text(card, encoding="utf-8")
            _exchange(made, folder)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror})") from None
    names = ", ".join(path.name for path in sorted(folder.iterdir()))
    console.line(f"{folder}: {names}")
    return folder


def _check_parity(found: np.ndarray, wanted: np.ndarray) -> float:
    """Returns the largest difference of a logit; raises ParityError if it is large."""
    difference = float(abs(found - wanted).max())
    limit = TOLERANCE + RELATIVE_TOLERANCE * float(abs(wanted).max())
    if not difference <= limit:
        raise ParityError(
            f"the largest difference of a logit to the checkpoint is {difference:.1e}; "
            f"expected at most {limit:.1e}. The export was not kept"
        )
    return difference


def _exchange(made: Path, folder: Path) -> None:
    """Renames `made` to `folder`; a former one of that name is kept until then."""
    former = made.parent / _FORMER / folder.name
    former.parent.mkdir()
    durable.sync_tree(made)
    try:
        with files.locked(folder.parent):
            if folder.exists():
                _check_replaceable(folder)
                durable.replace(folder, former)
            durable.replace(made, folder)
    finally:
        _put_back(made.parent)


def _check_replaceable(folder: Path) -> None:
    """Raises UserError if a former export holds what no export wrote."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a directory; move it elsewhere")
    names = {path.name for path in folder.iterdir()} - _FILES
    if names:
        raise UserError(
            f"{folder} contains {shown(min(names))}, which export did not write; move "
            "it elsewhere"
        )


def _put_back(partial: Path) -> None:
    """Puts a former export back into its place if no new one is there."""
    for former in partial.glob(f"{_FORMER}/*"):
        with contextlib.suppress(OSError):  # The new one is there.
            former.rename(partial.parent / former.name)


def run(argv: Sequence[str]) -> int:
    """Does what the command line says; returns 1 if the check fails.

    Raises:
      UserError: it cannot be done.
    """
    parser = cli.Parser("python -m flaxmnist.export", _DESCRIPTION)
    parser.add_run()
    parser.add_argument("--format", choices=FORMATS, required=True)
    args, overrides = parser.parse_config_args(argv)
    cli.start_jax(args)
    try:
        export(args.workdir, args.format, args.step, overrides=overrides)
    except ParityError as error:
        cli.say(str(error))
        return 1
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return cli.exit_code(run, argv)


if __name__ == "__main__":
    sys.exit(main())
