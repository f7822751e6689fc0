"""Comparison of runs, and of groups of runs that differ in their seed only."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy  # See `core.calibration`.

from flaxmnist import config as configs
from flaxmnist.report.charts import Log
from flaxmnist.report.statistics import Spread, interval
from flaxmnist.rundir.history import History
from flaxmnist.rundir.results import Summary

# Most runs of a group of which a table lists all names.
_MAX_NAMES = 3


@dataclasses.dataclass(frozen=True)
class Unfinished:
    """A run without a result.

    Attributes:
      name: the directory.
      status: why, such as ``"unfinished, step 40"``.
      log: what the run logged so far.
    """

    name: str
    status: str
    log: Log = dataclasses.field(default_factory=Log)


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but their seed.

    Attributes:
      runs: all of them.
    """

    runs: tuple[History, ...]

    @property
    def by_seed(self) -> dict[int, History]:
        """The first run of each seed: a repetition of a seed is no further sample."""
        return {run.summary.config["seed"]: run for run in reversed(self.runs)}

    @property
    def records(self) -> list[list[dict[str, Any]]]:
        """The logged records of one run per seed."""
        return [run.records for run in self.by_seed.values()]

    @property
    def logs(self) -> list[Log]:
        """The logs of one run per seed."""
        return [log_of(run) for run in self.by_seed.values()]

    @property
    def accuracies(self) -> dict[int, float]:
        """The accuracy on test, by seed."""
        return {seed: run.summary.test.accuracy for seed, run in self.by_seed.items()}

    @property
    def test_data(self) -> str | None:
        """The fingerprint of the test split, if known."""
        return (self.runs[0].summary.dataset.fingerprints or {}).get("test")


@dataclasses.dataclass(frozen=True)
class Row:
    """A group in the table of a comparison.

    Attributes:
      group: the runs.
      names: their names.
      accuracy: on test, over seeds.
      interval: the 95 % confidence interval of the accuracy: Student's over several
        seeds, and Wilson's over the images for one.
      validation: mean accuracy on validation.
      loss: mean of the test loss over seeds.
      seconds: mean time of a run; None if unknown.
      speed: mean number of images per second in training; None if unknown.
      difference: a test of the difference to the first group, as text.
    """

    group: Group
    names: str
    accuracy: Spread
    interval: tuple[float, float]
    validation: float
    loss: float
    seconds: float | None
    speed: float | None
    difference: str


def group(histories: Iterable[History]) -> dict[str, Group]:
    """Returns the runs of each recipe, by the name of the first run."""
    recipes: dict[str, list[History]] = {}
    for history in histories:
        recipes.setdefault(history.recipe, []).append(history)
    return {runs[0].name: Group(tuple(runs)) for runs in recipes.values()}


def compare(
    groups: Sequence[Group], correct: Mapping[str, np.ndarray] | None = None
) -> list[Row]:
    """Returns a row for each group.

    Args:
      groups: of runs; the others are compared with the first.
      correct: whether each test image is classified correctly, bool `[count]`, by the
        name of a run; of the groups with a single seed.
    """
    first = groups[0]
    return [
        _row(one, "" if one is first else _difference(first, one, correct or {}))
        for one in groups
    ]


def _row(group: Group, difference: str) -> Row:
    summaries = [run.summary for run in group.by_seed.values()]
    accuracy = Spread.of([*group.accuracies.values()])
    count = summaries[0].test.count
    low, high = interval(round(accuracy.mean * count), count)
    if accuracy.low is not None and accuracy.high is not None:
        low, high = accuracy.low, accuracy.high
    return Row(
        group,
        _names(group.runs),
        accuracy,
        (low, high),
        float(np.mean([one.validation.accuracy for one in summaries])),
        float(np.mean([one.test.loss for one in summaries])),
        _mean([one.seconds["total"] for one in summaries if one.seconds]),
        _mean([one.images_per_second for one in summaries if one.images_per_second]),
        difference,
    )


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def log_of(run: History) -> Log:
    """Returns what a finished run logged."""
    return Log(run.records, run.summary.dataset.counts["train"])


def differences(groups: Sequence[Group]) -> dict[str, list[str]]:
    """Returns the values of each option that differs, by group, as texts.

    The data, the machine and the versions of packages are among them if they differ.
    The seed is not.
    """
    facts = [[_facts(run.summary) for run in one.runs] for one in groups]
    names = dict.fromkeys(name for runs in facts for run in runs for name in run)
    found = {}
    for name in names:
        values = [
            [*dict.fromkeys(run.get(name, "–") for run in runs)] for runs in facts
        ]
        if len({value for some in values for value in some}) > 1:
            found[name] = [" / ".join(some) for some in values]
    return found


def _facts(summary: Summary) -> dict[str, str]:
    data = summary.dataset
    options = configs.flat(configs.from_dict(summary.config))
    del options["seed"]
    facts = options | {
        "data": f"{data.name} ({data.source})",
        "training images": f"{data.counts['train']:,}",
        "test images": f"{data.counts['test']:,}",
        "fingerprint of training images": data.fingerprint,
        **{
            f"fingerprint of {split} images": (data.fingerprints or {}).get(split, "–")
            for split in ("validation", "test")
        },
        **{f"source of {spec}": sha[:12] for spec, sha in summary.sources.items()},
        "steps": f"{summary.total_steps:,}",
        "changes during the run": "; ".join(
            f"step {change.step:,}: {change}" for change in summary.changes
        )
        or "–",
        "devices": f"{summary.devices.count} × {summary.devices.kind}",
        **summary.machine,
        **summary.versions,
    }
    return {name: str(value) for name, value in facts.items()}


def _names(runs: Sequence[History]) -> str:
    names = [run.name for run in runs]
    if len(names) > _MAX_NAMES:
        names[1:-1] = ["…"]
        names.append(f"{len(runs)} runs")
    return ", ".join(names)


def _difference(first: Group, other: Group, correct: Mapping[str, np.ndarray]) -> str:
    """Returns a test of whether two groups differ in accuracy on test, as text."""
    if not first.test_data or first.test_data != other.test_data:
        return "other test images"
    if min(len(first.accuracies), len(other.accuracies)) > 1:
        return t_test(first.accuracies, other.accuracies)
    if len(first.accuracies) != len(other.accuracies):
        return "one seed against several: no test"
    one, two = (correct.get(group.runs[0].name) for group in (first, other))
    if one is None or two is None:
        return "no predictions of the test images: no test"
    return mcnemar(one, two)


def mcnemar(first: np.ndarray, other: np.ndarray) -> str:
    """Returns McNemar's test of two models on the same images, as text.

    It is exact: of the images that only one model classifies correctly, each model has
    half if they are equally good (McNemar, 1947, "Note on the sampling error of the
    difference between correlated proportions or percentages").

    Args:
      first: whether a model classifies each image correctly, bool `[count]`.
      other: the same of the other model.
    """
    worse, better = int((first & ~other).sum()), int((other & ~first).sum())
    p = scipy.stats.binomtest(better, better + worse).pvalue if better + worse else 1.0
    return (
        f"{better} correct only here, {worse} correct only in the first: p = {p:.2g} "
        f"(McNemar, exact, n = {len(first):,} images)"
    )


def t_test(first: Mapping[int, float], other: Mapping[int, float]) -> str:
    """Returns a t test of the difference of two means, with its interval, as text.

    Groups with the same seeds are compared seed by seed (Student, 1908), because runs
    of one seed may be dependent. Otherwise the test is Welch's (Welch, 1947, "The
    generalization of 'Student's' problem when several different population variances
    are involved").

    Args:
      first: accuracy by seed; two or more.
      other: the same of the other group.
    """
    if first.keys() == other.keys():
        found = Spread.of([other[seed] - first[seed] for seed in first])
        mean, error = found.mean, (found.sd or 0) / math.sqrt(found.count)
        freedom, name = found.count - 1.0, f"paired t, {found.count} seeds"
    else:
        spreads = [Spread.of([*one.values()]) for one in (first, other)]
        mean = spreads[1].mean - spreads[0].mean
        squares = [(one.sd or 0) ** 2 / one.count for one in spreads]
        error = math.sqrt(sum(squares))
        parts = zip(squares, spreads, strict=True)
        below = sum(square**2 / (one.count - 1) for square, one in parts)
        freedom = sum(squares) ** 2 / below if below else 1.0
        name = f"Welch's t, {len(first)} and {len(other)} seeds"
    # Equal differences may differ in the last bit.
    if error < 1e-9:
        return f"{mean:+.2%}, without spread: no test ({name})"
    half = float(scipy.stats.t.ppf(0.975, freedom)) * error
    p = 2 * float(scipy.stats.t.sf(abs(mean) / error, freedom))
    return (
        f"{mean:+.2%} (95 %: {mean - half:+.2%} to {mean + half:+.2%}), p = {p:.2g} "
        f"({name})"
    )
