"""The members of a population, opened as one run: an ensemble."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from flaxmnist import config as configs
from flaxmnist.core.ensemble import Ensemble, stack
from flaxmnist.errors import UserError
from flaxmnist.options import OptionType
from flaxmnist.rundir import folder as workdirs
from flaxmnist.rundir import trust
from flaxmnist.rundir.population import MODEL, Member, configuration
from flaxmnist.runtime.console import warned_once

if TYPE_CHECKING:
    from flaxmnist.inference.saved_run import SavedRun


def _refuse(step: Any) -> None:
    if step is not None:
        raise ValueError


NO_STEP = OptionType("no step, as each member of a population has its own", _refuse)


def open_members(
    workdir: Path,
    config: configs.Config,
    members: Sequence[Member],
    open_member: Callable[..., "SavedRun"],
) -> "SavedRun":
    """Returns a population as one run that predicts the mean of probabilities.

    Args:
      workdir: the directory of the population.
      config: that the members share.
      members: of the population.
      open_member: opens a run directory with a `config`.

    Raises:
      UserError: a member is not finished, or the members have different models or data.
    """
    if missing := workdirs.unfinished(workdir, members):
        raise UserError(
            f"{workdir / missing[0]} is not finished; an ensemble requires all members "
            f"of the population. `flaxmnist train --workdir {quote(str(workdir))}` "
            "finishes them, or names the reason why not"
        )
    configurations: dict[Path, configs.Config] = {}
    for one in members:
        own = configuration(config, one)
        # The list of members is not signed, and may be of another person.
        trust.check(configs.as_dict(own), workdir)
        configurations[workdir / one.name] = own
    runs: list[SavedRun] = []
    with warned_once():
        for folder, own in configurations.items():
            run = open_member(folder, config=own)
            check_alike(runs[0] if runs else run, run)
            runs.append(run)
    first = runs[0]
    state = dataclasses.replace(
        first.state,
        model=Ensemble(first.state.model, len(runs)),
        params=stack([run.state.eval_params for run in runs]),
        model_state=stack([run.state.model_state for run in runs]),
        ema=None,
        ema_decay=None,
        layout=None,
    )
    return dataclasses.replace(
        first,
        workdir=workdir.absolute(),
        config=first.config,
        step=max(run.step for run in runs),
        last_step=max(run.last_step for run in runs),
        state=state,
        members=tuple(runs),
    )


def check_alike(first: "SavedRun", run: "SavedRun") -> None:
    """Raises UserError unless two runs have the same model and data."""
    changes = configs.changed_options(first.config, run.config).items()
    for name, (one, other) in changes:
        if name.partition(".")[0] in MODEL:
            raise UserError(
                f"an ensemble requires runs of one model: {name} is {one} in "
                f"{first.workdir} and {other} in {run.workdir}. Open one of them"
            )
    data, others = (one.manifest.dataset for one in (first, run))
    if (data.fingerprints, data.class_names) != (
        others.fingerprints,
        others.class_names,
    ):
        raise UserError(
            f"an ensemble requires runs of the same data: {first.workdir} was trained "
            f"on {data.name} ({data.source}), and {run.workdir} on {others.name} "
            f"({others.source}), with other examples. Open one of them"
        )
