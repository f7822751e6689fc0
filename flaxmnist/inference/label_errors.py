"""The search for wrong labels in the training split, by cross-validation."""

import dataclasses
import shlex
from pathlib import Path

import jax
import numpy as np

from flaxmnist import config as configs
from flaxmnist import options
from flaxmnist.data import Dataset, Split, draw
from flaxmnist.errors import DivergedError, StoppedError, UserError, shown
from flaxmnist.inference.evaluation import evaluation
from flaxmnist.inference.saved_run import open_run
from flaxmnist.report import suspects
from flaxmnist.report.suspects import Suspect
from flaxmnist.rundir import folder as workdirs
from flaxmnist.runtime.console import Console, warned_once
from flaxmnist.runtime.interrupts import stop_at_interrupt
from flaxmnist.runtime.memory import available_memory
from flaxmnist.training.evaluate import predict
from flaxmnist.training.experiment import load_dataset
from flaxmnist.training.loop import train_and_evaluate


def search(
    config: configs.Config, workdir: Path, folds: int, data: Dataset | None = None
) -> list[Suspect]:
    """Trains the runs and returns the suspects; see `flaxmnist.find_label_errors`."""
    if jax.process_count() > 1:
        raise UserError("label errors are searched by one process; start one only")
    workdirs.permit(config)
    folds = options.check("", {"folds": folds}, {"folds": options.whole(2)})["folds"]
    dataset, console = load_dataset(config, data), Console()
    train = dataset.train
    _check_folds(dataset, folds)
    fold_of = draw.folds(train.labels, folds, config.data.split_seed)
    names = [f"fold-{number}-of-{folds}" for number in range(1, folds + 1)]
    _check_place(workdir, names, config)
    probabilities = np.empty((len(train), dataset.num_classes), np.float32)
    place = shlex.quote(str(workdir))
    stopped = f"stopped; the same command with --workdir {place} continues"
    with workdirs.locked(workdir) as rundir, warned_once(), stop_at_interrupt(stopped):
        for number, name in enumerate(names):
            console.line(f"\n{name}")
            held_out = fold_of == number
            part = _without(dataset, held_out, name)
            try:
                train_and_evaluate(config, workdir / name, data=part, console=console)
            except StoppedError as error:
                raise StoppedError(error.number, stopped, error.alone) from None
            except DivergedError as error:
                # All runs of a search have the same options.
                raise DivergedError(
                    f"{name}: {error.problem}",
                    "Use another --workdir, with a smaller optimizer.learning_rate, "
                    "optimizer.clip_norm=1 or on_nan=rollback",
                ) from None
            probabilities[held_out] = _predicted(config, workdir / name, part)
            del part  # Two copies of the data need the memory of three.
        found = suspects.find_suspects(train.labels, probabilities, dataset.class_names)
        accuracy = float((probabilities.argmax(axis=1) == train.labels).mean())
        origin = f"{config.model.name} on {dataset.name} ({dataset.source})"
        page = suspects.page(
            workdir.resolve().name, origin, accuracy, found, train.images
        )
        rundir.prepare(())
        rundir.write("label_errors.csv", suspects.table(found))
        rundir.write("report.html", page)
    console.line(
        f"\n{len(found):,} of {len(train):,} training labels are suspect; accuracy on "
        f"held-out images {accuracy:.2%}\n{workdir}: label_errors.csv, report.html, "
        "and a run directory per fold"
    )
    return found


def _check_folds(dataset: Dataset, folds: int) -> None:
    """Raises UserError if a class has fewer examples than there are folds."""
    counts = np.bincount(dataset.train.labels)
    rarest = int(np.where(counts, counts, len(dataset.train)).argmin())
    if folds > counts[rarest]:
        raise UserError(
            f"folds={folds}: expected at most {counts[rarest]:,}, the training "
            f"examples of class {shown(dataset.class_names[rarest])}"
        )
    if (size := dataset.train.images.nbytes) > (free := available_memory()):
        raise UserError(
            f"the training examples of {dataset.name} need {size:,} bytes of memory; "
            f"{free:,} are available"
        )


def _check_place(workdir: Path, names: list[str], config: configs.Config) -> None:
    """Raises UserError if a directory contains a run, or another search."""
    for pattern in ("config.json", "population.json", "fold-*-of-*"):
        for path in sorted(workdir.glob(pattern)):
            if path.name not in names or path.is_symlink():
                raise UserError(
                    f"--workdir={workdir} contains {path.name}, which is not of this "
                    "search; expected a new directory, or that of a search with the "
                    "same folds"
                )
    for name in names:
        if workdirs.saved_config(workdir / name) not in (None, config):
            raise UserError(
                f"--workdir={workdir} contains a search with other options; use the "
                "same options, or another directory"
            )


def _without(dataset: Dataset, held_out: np.ndarray, name: str) -> Dataset:
    """Returns the data with examples of the training split as the test split."""
    train = dataset.train
    return dataclasses.replace(
        dataset,
        name=f"{dataset.name}, {name} as test",
        source="arrays",
        train=Split(train.images[~held_out], train.labels[~held_out]),
        test=Split(train.images[held_out], train.labels[held_out]),
        files=(),
    )


def _predicted(config: configs.Config, folder: Path, data: Dataset) -> np.ndarray:
    """Returns the probabilities of the test split, by the best checkpoint of a run."""
    run = open_run(folder, data=data, config=config)
    parts = evaluation(run, ["test"])
    outputs = predict(run.state, parts.eval_feeds["test"], parts.replicated)
    return outputs["probabilities"]
