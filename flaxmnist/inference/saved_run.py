"""A run that is opened from its directory: its model, its figures, its exports."""

import dataclasses
import functools
import os
import statistics
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from flaxmnist import config as configs
from flaxmnist import options
from flaxmnist.core import ensemble, models, sharding
from flaxmnist.core.calibration import UNCALIBRATED, Calibration
from flaxmnist.core.state import TrainState
from flaxmnist.data import Dataset
from flaxmnist.errors import UserError
from flaxmnist.inference.ensemble import NO_STEP, open_members
from flaxmnist.inference.evaluation import evaluation
from flaxmnist.inference.notebook import as_html
from flaxmnist.inference.places import DataPlaces
from flaxmnist.inference.predict import Prediction, predict_pictures
from flaxmnist.inference.reading import Reading, check_reads, read_picture
from flaxmnist.inference.restore import restore
from flaxmnist.paths import path_of
from flaxmnist.pictures.files import Picture
from flaxmnist.rundir import folder as workdirs
from flaxmnist.rundir import integrity, population
from flaxmnist.rundir.checkpoints import Checkpoints
from flaxmnist.rundir.manifest import Manifest
from flaxmnist.rundir.predictions import write_predictions
from flaxmnist.rundir.results import Figures, Summary
from flaxmnist.runtime import processes
from flaxmnist.runtime.console import Console
from flaxmnist.training.evaluate import predict
from flaxmnist.training.experiment import make_layout
from flaxmnist.training.summary import evaluate_splits, print_table, summarize


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class SavedRun:
    """A run opened by `open_run` or returned by `train`, at one of its checkpoints.

    The data are loaded at the first call that needs them, and must be those that the
    run was trained on: :meth:`evaluate`, :meth:`summarize`, :meth:`predict_split` and
    :meth:`report` raise `UserError` if they cannot be found. The places are, in this
    order: the overrides of `open_run`, ``FLAXMNIST_DATA_DIR``, the recorded directory.

    Attributes:
      workdir: the absolute path of the run directory.
      config: the configuration of the run.
      step: the step of the checkpoint.
      last_step: the last step that is saved.
      state: the parameters to evaluate and predict by, without an optimizer.
      manifest: what the checkpoint records beside its arrays.
      mesh: the devices to evaluate on.
      is_best: whether the checkpoint was chosen as the best on validation.
      members: the runs of a population, which evaluate and predict as an ensemble: with
        the mean of their probabilities; empty for a single run. `config` and `manifest`
        are then those of the first member, and `step` is the largest of their steps.
    """

    workdir: Path
    config: configs.Config
    step: int
    last_step: int
    state: TrainState
    manifest: Manifest
    mesh: jax.sharding.Mesh
    is_best: bool
    _places: DataPlaces
    members: tuple["SavedRun", ...] = ()

    def __repr__(self) -> str:
        count = models.num_parameters(self.state.params)
        return (
            f"SavedRun({str(self.workdir)!r}, {self.model_name}, "
            f"{count:,} parameters, {self.checkpoint})"
        )

    @property
    def model_name(self) -> str:
        """The name of the model, such as ``"cnn"`` or ``"ensemble of 8 × cnn"``."""
        return ensemble.name_of(self.state.model, self.config.model.name)

    @property
    def checkpoint(self) -> str:
        """The step, as ``"step 1,716"``; of an ensemble ``"steps 858 to 1,716"``."""
        first = min((one.step for one in self.members), default=self.step)
        if first == self.step:
            return f"step {self.step:,}"
        return f"steps {first:,} to {self.step:,}"

    _repr_html_ = as_html

    def predict(self, pictures: Iterable[Picture] | Picture) -> list[Prediction]:
        """Returns predictions of pictures; see :func:`flaxmnist.predict_images`."""
        names = self.manifest.dataset.class_names
        return predict_pictures(pictures, self.state, names, self.calibration)

    def read(self, picture: Picture) -> Reading:
        """Returns the numbers in a picture; see :func:`flaxmnist.read_digits`."""
        check_reads(self.state, self.manifest.dataset.class_names)
        return read_picture(picture, self.state, self.calibration)

    def evaluate(self, split: str = "test", *, translate: bool = False) -> Figures:
        """Returns the figures of the split "train", "validation" or "test".

        Args:
          split: to evaluate.
          translate: see :meth:`summarize`.

        Raises:
          UserError: the split is unknown, or the data cannot be found.
        """
        run = evaluation(self, [split])
        state = self._evaluated(translate)
        return evaluate_splits(run, state, Console(), [split])[split]

    def summarize(self, *, translate: bool = False) -> Summary:
        """Evaluates the three splits and prints their table.

        Args:
          translate: whether to predict each image by the mean of the logits over five
            copies of it: shifted by a pixel in each direction, and not shifted. The
            table and `model.name` of the summary name it.

        Returns:
          a summary as `train_and_evaluate` returns it; nothing is written.

        Raises:
          UserError: the data cannot be found.
        """
        run, console = evaluation(self), Console()
        state = self._evaluated(translate)
        summary = summarize(run, state, self.last_step, self.step, console)
        print_table(console, summary, self.checkpoint)
        return summary

    def _evaluated(self, translate: bool) -> TrainState:
        if not translate:
            return self.state
        model = ensemble.Translated(self.state.model)
        return dataclasses.replace(self.state, model=model)

    def predict_split(self, split: str = "test") -> Path:
        """Writes the predictions of a split.

        Returns:
          ``predictions-<split>.jsonl`` in the run directory. A line per example, in the
          order of the split: its `index`, its `label`, the most probable class as
          `classes`, and the calibrated `probabilities` of all classes.

        Raises:
          UserError: the split is unknown, the data cannot be found, or the file cannot
            be written.
        """
        integrity.check_links(self.workdir)
        run = evaluation(self, [split])
        outputs = predict(self.state, run.eval_feeds[split], run.replicated)
        outputs["probabilities"] = self.calibration.probabilities(outputs["logits"])
        path = write_predictions(self.workdir, split, outputs)
        correct = outputs["classes"] == outputs["labels"]
        Console().line(
            f"{path}: {len(correct):,} examples of {split}, {self.checkpoint}, "
            f"accuracy {correct.mean():.2%}"
            + (f" ({self.model_name})" if self.members else "")
        )
        return path

    def report(self, compare: Iterable[str | os.PathLike[str]] = ()) -> Path:
        """Writes ``report.html`` again, or compares the run with others.

        Args:
          compare: directories of other runs, or of populations. If given, the page is
            ``comparison.html`` in the run directory, and the report is left as it is.

        Returns:
          the path of the page.

        Raises:
          UserError: a directory to compare with does not exist, the data cannot be
            found, or the directory cannot be written.
        """
        from flaxmnist.inference.report import report_run

        return report_run(self, compare)

    def export(self, format: str, output: str | os.PathLike[str] | None = None) -> Path:
        """Writes the model for other programs.

        The export is compared with the checkpoint on test images or, if the data cannot
        be found, on generated ones.

        Args:
          format: "stablehlo", "onnx", "numpy", "web" or "safetensors".
          output: the directory to write; an export in it is replaced. The directory
            ``export/<format>`` of the run if None.

        Returns:
          the directory.

        Raises:
          UserError: the format is unknown, its packages are not installed, or the
            directory cannot be written or contains other files.
          ParityError: the predictions of the export differ from those of the
            checkpoint; the export is not kept.
        """
        from flaxmnist.inference.export import export_run

        return export_run(self, format, output)

    @functools.cached_property
    def dataset(self) -> Dataset:
        """The data that the run was trained on, read at the first use.

        Raises:
          UserError: they cannot be found, or other examples are in their place.
        """
        dataset = self._places.load(self.manifest)
        if dataset.warning:
            Console().warn(dataset.warning)
        return dataset

    @property
    def given_data(self) -> Dataset | None:
        """The data that `open_run` was given; None if it was not."""
        return self._places.given

    def local_dataset(self) -> Dataset | None:
        """Returns the data if they are on this machine; downloads nothing.

        Raises:
          UserError: the data are not in the place that `open_run` was given.
        """
        if self._places.needs_network:
            return None
        try:
            return self.dataset
        except UserError:
            if self._places.is_told:
                raise
            return None

    @property
    def summary(self) -> Summary | None:
        """The content of ``summary.json``; None if it is not of this checkpoint."""
        found = workdirs.saved_summary(self.workdir)
        return found if found and found.evaluated_step == self.step else None

    @functools.cached_property
    def calibration(self) -> Calibration:
        """That of `summary`; of an ensemble, the means over its members."""
        found = [one.summary for one in self.members or (self,)]
        known = [one.calibration for one in found if one is not None]
        if len(known) < len(found):
            return UNCALIBRATED
        limits = [one.energy_limit for one in known if one.energy_limit is not None]
        return Calibration(
            statistics.mean(one.temperature for one in known),
            statistics.mean(limits) if len(limits) == len(known) else None,
        )


def open_run(
    workdir: str | os.PathLike[str],
    step: int | None = None,
    overrides: Mapping[str, Any] | Iterable[tuple[str, Any]] = (),
    *,
    data: Dataset | None = None,
    config: ConfigDict | configs.Config | None = None,
    use_mesh: bool = False,
    trust_code: bool = False,
) -> SavedRun:
    """Opens a run to evaluate it, predict by it or export it; reads parameters only.

    Args:
      workdir: the run directory, which may have been moved or copied; or that of a
        population, whose members are opened as an ensemble.
      step: of the checkpoint; the best on validation if None.
      overrides: changes to the configuration, such as ``{"data.dir": "/new/place"}``.
      data: the data that the run was trained on, if a program gave them.
      config: of the run, whose ``config.json`` may then be missing; that file if None.
      use_mesh: whether to use the devices of `config.mesh`; otherwise one device.
      trust_code: whether to run all code that the run directory names. Otherwise, only
        code that this user named when the run was trained on this machine, or in
        `config`, or earlier in this process. Read the code first.

    Raises:
      UserError: the run or the checkpoint is missing, damaged or not of `config`, or
        names code that may not run; or this is one of several processes, and `use_mesh`
        is false.
    """
    workdir = path_of(workdir, "workdir")
    if step is not None:
        step = options.check("", {"step": step}, {"step": options.whole(0)})["step"]
    if config is not None:
        config = configs.resolve(config)
        workdirs.permit(config)
    if trust_code:
        workdirs.permit_all(workdir)
    population.check_exists(workdir)
    saved = workdirs.saved_config(workdir, alone=not use_mesh)
    members = population.saved_members(workdir)
    is_run = saved or members or workdirs.saved_steps(workdir)
    if (trained := config or saved) is None or not is_run:
        raise UserError(
            f"{workdir} contains no run: config.json is missing; name a run directory"
        )
    if isinstance(overrides, Iterator):  # Each member of a population needs them.
        overrides = tuple(overrides)
    if members is not None:
        options.check("", {"step": step}, {"step": NO_STEP})
        open_member = functools.partial(
            open_run,
            overrides=overrides,
            data=data,
            use_mesh=use_mesh,
            trust_code=trust_code,
        )
        return open_members(workdir, trained, members, open_member)
    given = configs.override(trained, overrides)
    if saved is not None:
        workdirs.check_same(saved, given, allow_change=True)
    # Reading a checkpoint would wait for the other processes.
    if not use_mesh and jax.process_count() > 1:
        raise UserError(
            f"{workdir} cannot be opened by one of several processes alone; open it in "
            "another program or, after the training, in each of them with use_mesh=True"
        )
    layout = make_layout(given) if use_mesh else None
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        chosen = checkpoints.best_step if step is None else step
        chosen = processes.broadcast(chosen) if use_mesh else chosen
        state, manifest = restore(given, checkpoints, chosen, layout)
        last_step = checkpoints.steps[-1]
    recorded = saved or configs.from_dict(manifest.config)
    return SavedRun(
        workdir=workdir.absolute(),  # The current directory may change.
        config=given,
        step=chosen,
        last_step=last_step,
        state=state,
        manifest=manifest,
        mesh=layout.mesh if layout else sharding.make_mesh(1),
        is_best=step is None,
        _places=DataPlaces.of(recorded, given, manifest, data),
    )
