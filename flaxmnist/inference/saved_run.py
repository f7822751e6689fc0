"""What is done with a trained run: its figures again, or its predictions."""

import contextlib
import dataclasses
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from flaxmnist.config import schema as configs
from flaxmnist.core import models
from flaxmnist.core.state import TrainState, abstract_state, create_state
from flaxmnist.data import SPLITS
from flaxmnist.errors import DamagedError, UserError
from flaxmnist.options import check, one_of
from flaxmnist.paths import path_of
from flaxmnist.rundir import folder as workdirs
from flaxmnist.rundir import integrity
from flaxmnist.rundir.checkpoints import Checkpoints
from flaxmnist.rundir.manifest import Summary
from flaxmnist.runtime import processes
from flaxmnist.runtime.console import Console
from flaxmnist.runtime.durable import write_file
from flaxmnist.runtime.memory import available_memory
from flaxmnist.training.evaluate import predict
from flaxmnist.training.experiment import Run, build
from flaxmnist.training.resume import expected, with_parameters
from flaxmnist.training.summary import print_table, summarize


def evaluate_checkpoint(
    config: ConfigDict,
    workdir: str | Path,
    step: int | None = None,
    console: Console | None = None,
) -> Summary:
    """Evaluates a run's best checkpoint on validation, or that of `step`.

    Returns:
      a summary as `train_and_evaluate` makes it; nothing is written.

    Raises:
      UserError: there is no such run, or no such checkpoint.
    """
    console = console or Console()
    run, state, step, last = open_run(config, workdir, step, console)
    summary = summarize(run, state, last, step, console)
    print_table(console, summary)
    return summary


def predict_split(
    config: ConfigDict,
    workdir: str | Path,
    split: str = "test",
    step: int | None = None,
    console: Console | None = None,
) -> Path:
    """Writes what a run's best checkpoint, or that of `step`, says of a split.

    Returns:
      ``predictions-<split>.jsonl`` in the run's folder. A line an example, in the
      split's order: its `index` there, its `label`, the most probable of the `classes`,
      and the ten `probabilities`.

    Raises:
      UserError: there is no such split, run or checkpoint, or the file cannot be
        written.
    """
    check("", {"split": split}, {"split": one_of(SPLITS)})
    console, workdir = console or Console(), path_of(workdir, "workdir")
    integrity.check_links(workdir)
    run, state, step, _ = open_run(config, workdir, step, console)
    outputs = predict(state, run.eval_feeds[split], run.everywhere)
    lines = [
        json.dumps(
            {
                "index": index,
                "label": int(label),
                "classes": int(outputs["classes"][index]),
                "probabilities": outputs["probabilities"][index].tolist(),
            }
        )
        for index, label in enumerate(outputs["labels"])
    ]
    path = workdir / f"predictions-{split}.jsonl"
    if processes.is_first():
        try:
            write_file(path, "\n".join(lines) + "\n")
        except OSError as error:
            raise UserError(f"{path} cannot be written ({error.strerror})") from None
    correct = np.sum(outputs["classes"] == outputs["labels"])
    console.line(
        f"{path}: {len(lines):,} examples of {split}, step {step}, "
        f"accuracy {correct / len(lines):.2%}"
    )
    return path


@contextlib.contextmanager
def _another_advised(checkpoints: Checkpoints) -> Iterator[None]:
    """Adds another saved step, if any, to the error of a damaged checkpoint."""
    try:
        yield
    except DamagedError as error:
        if others := [step for step in checkpoints.steps if step != error.step]:
            raise error.advised(f"choose another with --step {others[-1]}") from None
        raise


def load_state(workdir: str | Path, step: int | None = None) -> TrainState:
    """Returns a run's best state on validation, or that of `step`, to predict by.

    It is on the default device, without an optimizer; the data are not needed.

    Raises:
      UserError: there is no such run, or no such checkpoint.
    """
    workdir = path_of(workdir, "workdir")
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        config = workdirs.saved_config(workdir)
        if config is None:
            raise UserError(f"no run in {workdir}: there is no config.json")
        model = models.build(dtype=config.precision, **config.model)
        tx = optax.identity()
        size = 4 * models.num_parameters(abstract_state(model, tx).params)
        if size > (free := available_memory()):
            raise UserError(
                f"the model of {workdir} needs {size / 1e9:,.1f} GB of memory; "
                f"{free / 1e9:,.1f} GB are available"
            )
        state = create_state(model, tx, ema_decay=config.ema)
        chosen = checkpoints.best_step if step is None else step
        with _another_advised(checkpoints):
            return with_parameters(state, checkpoints, chosen)


def open_saved(
    workdir: Path,
    step: int | None = None,
    console: Console | None = None,
    overrides: Iterable[tuple[str, str]] = (),
) -> tuple[Run, TrainState, int, int]:
    """Opens a run as :func:`open_run`, as its folder describes it, on one device.

    Args:
      workdir: the run directory.
      step: of the checkpoint.
      console: where to speak.
      overrides: changes such as ``("data.dir", "/other/place")``.

    Raises:
      UserError: there is no such run, or no such checkpoint.
    """
    config = workdirs.saved_config(workdir)
    if config is None:
        raise UserError(f"no run in {workdir}: there is no config.json")
    # It may have been trained on more devices than there are here.
    config.mesh = ConfigDict({"data": 1})
    config = configs.override(config, overrides)
    return open_run(config, workdir, step, console)


def open_run(
    config: ConfigDict,
    workdir: str | Path,
    step: int | None = None,
    console: Console | None = None,
) -> tuple[Run, TrainState, int, int]:
    """Opens a run at its best checkpoint on validation, or that of `step`.

    Nothing is written.

    Returns:
      the run, the state, the step of that state, and the last step trained.

    Raises:
      UserError: there is no such run, or no such checkpoint.
    """
    config, workdir = configs.resolve(config), path_of(workdir, "workdir")
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        workdirs.check(workdir, config)
        run = build(config)
        chosen = checkpoints.best_step if step is None else step
        with _another_advised(checkpoints):
            tree, _ = checkpoints.restore(chosen, *expected(run))
        last = checkpoints.steps[-1]
    if run.dataset.warning:
        (console or Console()).warn(run.dataset.warning)
    return run, tree["state"], chosen, last


def export(
    workdir: str | Path,
    name: str,
    step: int | None = None,
    console: Console | None = None,
    overrides: Iterable[tuple[str, str]] = (),
) -> Path:
    """Writes a run's best model, or that of `step`, into ``export/<format>``.

    Args:
      workdir: the folder of the run.
      name: one of `flaxmnist.export.write.FORMATS`.
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
    from flaxmnist.export import card as cards
    from flaxmnist.export.parity import CHECKED
    from flaxmnist.export.write import write_export

    workdir, console = path_of(workdir, "workdir"), console or Console()
    integrity.check_links(workdir)
    chosen = "the best on validation" if step is None else "chosen by its number"
    run, state, step, last = open_saved(workdir, step, console, overrides)
    summary = workdirs.saved_summary(workdir)
    if summary is None or summary.evaluated_step != step:
        summary = summarize(run, state, last, step, console)
    # Off the mesh, which a program would otherwise demand, and in float32.
    state = jax.device_put(jax.device_get(state), jax.devices()[0])
    model = models.build(**run.config.model)
    state = dataclasses.replace(state, model=model, layout=None)
    images, folder = run.dataset.test.images[:CHECKED], workdir / "export" / name

    def card(difference: float) -> str:
        licence, count = run.dataset.licence, len(images)
        return cards.render(name, summary, licence, chosen, difference, count)

    difference = write_export(state, name, folder, images, card)
    console.line(
        f"{name}: largest difference to the checkpoint {difference:.1e}, over "
        f"{len(images):,} test images"
    )
    names = ", ".join(path.name for path in sorted(folder.iterdir()))
    console.line(f"{folder}: {names}")
    return folder
