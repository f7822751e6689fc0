"""Trains models from Python, and returns the result."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from flaxmnist import config as configs
from flaxmnist.data import SOURCES, Dataset
from flaxmnist.data.datasets import NAMES
from flaxmnist.data.draw import Draw
from flaxmnist.errors import UserError, did_you_mean, shown
from flaxmnist.inference.label_errors import search
from flaxmnist.inference.saved_run import SavedRun, open_run
from flaxmnist.paths import path_of
from flaxmnist.report.results import PopulationSummary
from flaxmnist.report.suspects import Suspect
from flaxmnist.rundir import new_folder, varying
from flaxmnist.rundir.metrics_log import Record
from flaxmnist.rundir.results import Summary
from flaxmnist.training.loop import train_and_evaluate
from flaxmnist.training.population import train_members

Arrays = tuple[Any, Any]


def train(
    config: ConfigDict | configs.Config | str | os.PathLike[str],
    workdir: str | os.PathLike[str] | None = None,
    *,
    data: Dataset | tuple[Arrays, Arrays] | str | os.PathLike[str] | None = None,
    hooks: Sequence[Callable[[Record | Summary], object]] = (),
    **options: Any,
) -> SavedRun:
    """Trains a model, or resumes a run, and opens the result.

    :func:`flaxmnist.train_and_evaluate` has `allow_change`, which resumes a run with
    other options.

    Args:
      config: as :func:`flaxmnist.train_and_evaluate` takes it, such as ``"cnn"``.
      workdir: the run directory; ``runs/<config>-<UTC time>`` if None.
      data: a `Dataset`; arrays, ``((train_images, train_labels), (test_images,
        test_labels))``, as `Dataset.from_arrays` takes them; the name of a data set or
        of a source, such as ``"fashion_mnist"`` or ``"synthetic"``; or else a directory
        or a file. If None, the data that the configuration names.
      hooks: as `train_and_evaluate` calls them.
      **options: of the configuration, such as ``num_epochs=1``. An option of a group
        has its full name, as in ``**{"optimizer.name": "adam"}``; its last part, as in
        ``learning_rate=3e-4``, if no other option ends so; or is in a dict, as in
        ``optimizer={"name": "adam"}``.

    Returns:
      the run at its best checkpoint on validation.

    Raises:
      UserError: as `train_and_evaluate`; or an option is unknown or ambiguous, or
        `data.validation_share` is given together with arrays or a `Dataset`.
      StoppedError: as `train_and_evaluate`.
      HookError: as `train_and_evaluate`.
    """
    config, dataset, spec = _prepare(config, data, options)
    path = None if workdir is None else path_of(workdir, "workdir")
    with new_folder.chosen(path, spec) as path:
        train_and_evaluate(config, path, hooks, dataset)
    several = jax.process_count() > 1
    return open_run(path, data=dataset, use_mesh=several)


def train_population(
    config: ConfigDict | configs.Config | str | os.PathLike[str],
    workdir: str | os.PathLike[str] | None = None,
    *,
    seeds: Iterable[int] | None = None,
    sweep: Mapping[str, Sequence[Any]] | None = None,
    data: Dataset | tuple[Arrays, Arrays] | str | os.PathLike[str] | None = None,
    **options: Any,
) -> PopulationSummary:
    """Trains runs that differ in their seed or in some options, or resumes them.

    They are trained in turn, with the data read once; seeds share one compilation. Each
    is an ordinary run in a subdirectory of `workdir`. ``open_run(workdir)`` opens all
    of them as an ensemble.

    Args:
      config: as :func:`train` takes it.
      workdir: the directory of the population; as of `train` if None.
      seeds: of the runs, such as ``range(8)``; that of `config` alone if None.
      sweep: values of options, named as in `options`, such as ``{"learning_rate":
        [1e-3, 2e-3]}``. Every combination is trained, with each seed.
      data: as `train` takes it.
      **options: as of `train`, for all runs.

    Raises:
      UserError: as `train`; or a seed or a value is given twice, a swept option changes
        the shapes of arrays, or `workdir` contains something else.
      StoppedError: as `train`; the same call continues.
    """
    config, dataset, spec = _prepare(config, data, options)
    if not isinstance(sweep, Mapping | None):
        raise UserError(
            f"sweep={shown(sweep)}: expected a dict of lists, such as "
            "{'learning_rate': [1e-3, 2e-3]}"
        )
    if seeds is None and not sweep:
        raise UserError(
            "seeds and sweep are missing; expected one of them, such as "
            "seeds=range(8). For a single run, use train"
        )
    sweep = _full_names(config, sweep or {})
    varied = {*sweep} | ({"seed"} if seeds is not None else set())
    varying.check_free(_full_names(config, options), varied)
    members = varying.vary(config, seeds, sweep)
    path = None if workdir is None else path_of(workdir, "workdir")
    with new_folder.chosen(path, spec) as path:
        return train_members(config, path, members, dataset)


def find_label_errors(
    config: ConfigDict | configs.Config | str | os.PathLike[str],
    workdir: str | os.PathLike[str] | None = None,
    *,
    folds: int = 5,
    data: Dataset | tuple[Arrays, Arrays] | str | os.PathLike[str] | None = None,
    **options: Any,
) -> list[Suspect]:
    """Returns the training examples whose labels are probably wrong, surest first.

    The training split is divided into folds at random, by `data.split_seed`. For each
    fold, a run is trained on the others, with the fold as its test split, in a
    subdirectory of `workdir`. The probabilities of all folds decide by confident
    learning; see :func:`flaxmnist.report.suspects.find_suspects`. ``label_errors.csv``
    and ``report.html`` in `workdir` list the suspects. The same call resumes.

    Args:
      config: as :func:`train` takes it.
      workdir: the directory of the search; ``runs/labels-<UTC time>`` if None.
      folds: the number of runs, at most the examples of the rarest class.
      data: as `train` takes it.
      **options: as of `train`, for all runs.

    Raises:
      UserError: as `train`; or `folds` is not possible, or `workdir` contains something
        else.
      StoppedError: as `train`; the same call continues.
    """
    config, dataset, _ = _prepare(config, data, options)
    path = None if workdir is None else path_of(workdir, "workdir")
    with new_folder.chosen(path, "labels") as path:
        return search(config, path, folds, dataset)


def _prepare(
    config: Any, data: Any, options: Mapping[str, Any]
) -> tuple[configs.Config, Dataset | None, str]:
    """Returns a configuration, data in memory if any, and a name for a directory."""
    spec = None
    if isinstance(config, str | os.PathLike):
        spec = os.fspath(config)
        config = configs.load(spec)
    config = configs.resolve(config)
    dataset, place = _data(data)
    config = configs.override(config, place | _full_names(config, options))
    if dataset is not None:
        Draw(config.data.validation_share).check_unused()
    return config, dataset, spec or config.model.name.rpartition(":")[2]


def _data(data: Any) -> tuple[Dataset | None, dict[str, Any]]:
    """Returns data in memory, if any, and else the options that name the data."""
    match data:
        case None:
            return None, {}
        case Dataset():
            return data, {}
        case str() if data in SOURCES:
            return None, {"data.source": data}
        case str() if data in NAMES:
            return None, {"data.source": "auto", "data.name": data}
        case str() if not os.path.exists(data) and (
            hint := did_you_mean(data, {*NAMES, *SOURCES})
        ).startswith(";"):
            raise UserError(f"data={shown(data)} does not exist{hint}")
        case str() | os.PathLike():
            return None, {"data.source": "auto", "data.dir": os.fspath(data)}
        case ((_, _) as train, (_, _) as test):
            return Dataset.from_arrays(tuple(train), tuple(test)), {}
    raise UserError(
        f"data={shown(data)}: expected a Dataset, a name, a path, or arrays as "
        "((train_images, train_labels), (test_images, test_labels))"
    )


def _full_names(config: configs.Config, options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns options by their full names.

    Raises:
      UserError: a name is that of several options.
    """
    known = configs.flat(config)
    changes: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, Mapping):
            changes |= {f"{name}.{key}": one for key, one in value.items()}
            continue
        ends = [path for path in known if path.endswith(f".{name}")]
        if name not in known and len(ends) > 1:
            raise UserError(
                f"option {name!r} is ambiguous; expected one of {', '.join(ends)}, as "
                f"in train(…, **{{{ends[0]!r}: {shown(value)}}})"
            )
        changes[ends[0] if name not in known and ends else name] = value
    return changes
