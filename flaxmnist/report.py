"""A run on one page: ``report.html``, and its pictures under ``plots/``."""

if __name__ == "__main__":
    from flaxmnist import startup

    startup.prepare()

import base64
import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import jinja2
import numpy as np

from flaxmnist import analysis, cli, distributed, plots, run_files, sharding
from flaxmnist import config as configs
from flaxmnist import workdir as workdirs
from flaxmnist.checks import UserError, path_of, printable
from flaxmnist.console import Console
from flaxmnist.data import SPLITS
from flaxmnist.durable import make_directory, write_file
from flaxmnist.evaluate import predict
from flaxmnist.inputs import IMAGE_SHAPE
from flaxmnist.metrics import Metrics
from flaxmnist.observe import filters, mistakes
from flaxmnist.restore import open_saved
from flaxmnist.run import Run
from flaxmnist.state import TrainState
from flaxmnist.steps import predict_step
from flaxmnist.summary import summarize
from flaxmnist.writers import records

_DESCRIPTION = """\
Writes a run's report.html again, perhaps beside other runs.

  %(prog)s --workdir runs/a
  %(prog)s --workdir runs/a --compare runs/b runs/c

Runs that differ in their seed alone are drawn as one: mean and standard deviation.
--config.data.dir=DIR names the data of the run where they are now.
"""
_SHOWN_MISTAKES = 36


@dataclasses.dataclass(frozen=True)
class History:
    """What a run left behind.

    Attributes:
      name: its folder.
      summary: its ``summary.json``.
      records: its ``metrics.jsonl``.
    """

    name: str
    summary: dict[str, Any]
    records: list[dict[str, Any]]

    @classmethod
    def read(cls, workdir: Path, summary: dict[str, Any] | None = None) -> "History":
        """Reads a run's folder.

        Args:
          workdir: the folder.
          summary: that of the run; read if None.

        Raises:
          UserError: there is no finished run in it.
        """
        found: list[dict[str, Any]] = []
        try:
            found = list(records(workdir / "metrics.jsonl"))
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            raise UserError(
                f"{error.filename} cannot be read ({error.strerror})"
            ) from None
        summary = summary or workdirs.saved_summary(workdir)
        if summary is None:
            raise UserError(
                f"{workdir} holds no finished run: its summary.json is missing or "
                "damaged. Train it to its end"
            )
        return cls(str(workdir), summary, found)

    @property
    def recipe(self) -> str:
        """What runs of the same recipe and other seeds have in common."""
        config = configs.resolved(self.summary["config"])
        config.seed = 0
        dataset = self.summary["dataset"]
        return repr(
            [
                # Runs of older versions know that of the training split alone.
                dataset.get("fingerprints", dataset["fingerprint"]),
                self.summary["total_steps"],
                configs.what_matters(config),
            ]
        )


def _group(histories: Sequence[History]) -> dict[str, list[History]]:
    """Returns the runs of each recipe, by the name of its first."""
    recipes: dict[str, list[History]] = {}
    for history in histories:
        recipes.setdefault(history.recipe, []).append(history)
    return {runs[0].name: runs for runs in recipes.values()}


def _comparison(groups: dict[str, list[History]]) -> list[dict[str, Any]]:
    """Returns a row a recipe: mean and standard deviation of test over its seeds."""
    rows = []
    for runs in groups.values():
        accuracies = [run.summary["test"]["accuracy"] for run in runs]
        losses = [run.summary["test"]["loss"] for run in runs]
        rows.append(
            {
                "names": ", ".join(run.name for run in runs),
                "data": "{name} ({source})".format(**runs[0].summary["dataset"]),
                "count": runs[0].summary["test"]["count"],
                "seeds": len({run.summary["config"]["seed"] for run in runs}),
                "parameters": runs[0].summary["model"]["parameters"],
                "accuracy": np.mean(accuracies),
                "loss": np.mean(losses),
                "spread": np.std(accuracies, ddof=1) if len(runs) > 1 else None,
            }
        )
    return rows


def _splits(
    summary: dict[str, Any], outputs: dict[str, dict[str, np.ndarray]]
) -> list[dict[str, Any]]:
    """Returns the table of the splits, with confidence intervals."""
    rows = []
    for split in SPLITS:
        row = {"name": split, **summary[split]}
        right = round(row["accuracy"] * row["count"])
        row["accuracy_interval"] = analysis.interval(right, row["count"])
        if split in outputs:
            found = outputs[split]
            losses = analysis.losses(found["logits"], found["labels"])
            row["loss_interval"] = analysis.mean_interval(losses)
        rows.append(row)
    return rows


def _classes(metrics: Metrics) -> list[dict[str, Any]]:
    """Returns the table of the classes."""
    figures, confusion = metrics.per_class(), np.asarray(metrics.confusion)
    rows = []
    for label, row in enumerate(confusion):
        found = {name: values[label] for name, values in figures.items()}
        count, right = int(row.sum()), int(row[label])
        interval = analysis.interval(right, count) if count else (0.0, 1.0)
        rows.append({"label": label, "count": count, "interval": interval, **found})
    return rows


def _model(run: Run, state: TrainState) -> dict[str, Any]:
    """Returns the parameters one by one, and what the model takes."""
    leaves = [
        {"name": name, "shape": "×".join(map(str, leaf.shape)), "count": leaf.size}
        for name, leaf in sharding.named_leaves(state.params)
    ]
    image = jax.ShapeDtypeStruct((1, *IMAGE_SHAPE), np.uint8)
    lowered = predict_step.lower(sharding.abstract(lambda: state, None), image)
    # Before compilation, not every backend can tell.
    costs = lowered.cost_analysis() or lowered.compile().cost_analysis() or {}

    def megabytes(tree: Any) -> float:
        return sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) / 1e6

    return {
        "leaves": leaves,
        "flop": costs.get("flops"),
        "parameters_mb": megabytes(state.params),
        "optimizer_mb": megabytes(state.opt_state),
        "images_mb": run.dataset.train.images.nbytes / 1e6,
    }


def write_report(
    run: Run,
    state: TrainState,
    summary: dict[str, Any],
    workdir: Path,
    others: Sequence[History] = (),
) -> Path:
    """Writes ``report.html``, one file that needs no other, and ``plots/*.png``.

    Args:
      run: the parts of the run.
      state: the state that `summary` is of.
      summary: as :func:`flaxmnist.summary.summarize` returns it.
      workdir: the run's folder.
      others: runs to draw beside it.

    Returns:
      the path of the page.
    """
    outputs = {
        split: predict(state, run.eval_feeds[split], run.everywhere)
        for split in ("validation", "test")
    }
    params = jax.device_get(jax.device_put(state.eval_params, run.everywhere))
    path = workdir / "report.html"
    if not distributed.is_first():
        return path
    validation, test = outputs["validation"], outputs["test"]
    temperature = analysis.fit_temperature(validation["logits"], validation["labels"])
    confusion = np.zeros((10, 10), int)
    np.add.at(confusion, (test["labels"], test["classes"]), 1)
    wrong = mistakes(test)[:_SHOWN_MISTAKES]
    captions = [
        f"{test['labels'][row]} as {test['classes'][row]} "
        f"{test['probabilities'][row].max():.0%}"
        for row in wrong
    ]
    groups = _group([History.read(workdir, summary), *others])
    figures = {
        "curves": plots.curves(
            {name: [one.records for one in runs] for name, runs in groups.items()}
        ),
        "confusion": plots.confusion(confusion),
        "calibration": plots.reliability(
            analysis.reliability(test["logits"], test["labels"]),
            analysis.reliability(test["logits"] / temperature, test["labels"]),
            temperature,
        ),
        "mistakes": plots.mistakes(run.dataset.test.images[wrong], captions),
    }
    if (tiled := filters(params)) is not None:
        figures["filters"] = plots.filters(tiled)
    make_directory(workdir / "plots")
    pictures = {}
    for name, figure in figures.items():
        content = plots.png(figure)
        write_file(workdir / "plots" / f"{name}.png", content)
        pictures[name] = "data:image/png;base64," + base64.b64encode(content).decode()
    flags = configs.flags_of(configs.resolved(summary["config"]))
    page = _template().render(
        name=printable(workdir.resolve().name),
        written=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        summary=summary,
        splits=_splits(summary, outputs),
        classes=_classes(Metrics(0.0, confusion)),
        comparison=_comparison(groups) if others else [],
        mistakes=int((test["labels"] != test["classes"]).sum()),
        model=_model(run, state),
        temperature=temperature,
        pictures=pictures,
        config=json.dumps(summary["config"], indent=2),
        command=shlex.join(["python", "-m", "flaxmnist.main", *flags]),
    )
    write_file(path, page)
    return path


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["percent"] = lambda share: f"{share:.2%}"
    environment.filters["thousands"] = lambda count: f"{count:,.0f}"
    return environment.get_template("report.html")


def run(argv: Sequence[str]) -> None:
    """Does what the command line says.

    Raises:
      UserError: it cannot be done.
    """
    parser = cli.Parser("python -m flaxmnist.report", _DESCRIPTION)
    parser.add_argument("--workdir", type=path_of, metavar="DIR", required=True)
    parser.add_argument(
        "--compare",
        type=lambda text: path_of(text, "--compare"),
        metavar="DIR",
        nargs="+",
        default=[],
    )
    args, overrides = parser.parse_config_args(argv)
    cli.start_jax(args)
    # Each once, and none beside itself.
    unique = {os.path.realpath(workdir): workdir for workdir in args.compare}
    unique.pop(os.path.realpath(args.workdir), None)
    run_files.check_links(args.workdir)
    others = [History.read(workdir) for workdir in unique.values()]
    console = Console()
    opened, state, step, last = open_saved(
        args.workdir, console=console, overrides=overrides
    )
    summary = workdirs.saved_summary(args.workdir)
    if summary is None or (summary["step"], summary["evaluated_step"]) != (last, step):
        summary = summarize(opened, state, last, step, console)
    try:
        path = write_report(opened, state, summary, args.workdir, others)
    except OSError as error:
        raise UserError(
            f"{args.workdir} cannot be written ({error.strerror})"
        ) from None
    console.line(str(path))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return cli.exit_code(run, argv)


if __name__ == "__main__":
    sys.exit(main())
