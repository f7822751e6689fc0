"""The feeds and figures to evaluate a saved run on its splits."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from flaxmnist import options
from flaxmnist.core import sharding
from flaxmnist.data import SPLITS
from flaxmnist.data.feeds import FEEDS
from flaxmnist.training.experiment import Evaluation, check_dataset, eval_batch_size

if TYPE_CHECKING:
    from flaxmnist.inference.saved_run import SavedRun


def evaluation(run: "SavedRun", splits: Sequence[str] = SPLITS) -> Evaluation:
    """Returns an evaluation of splits; raises UserError as :meth:`evaluate`."""
    for split in splits:
        options.check("", {"split": split}, {"split": options.one_of(SPLITS)})
    dataset, config = run.dataset, run.config
    check_dataset(config, dataset)
    feeds = FEEDS[config.data.placement].in_order(
        {name: dataset.split(name) for name in splits},
        eval_batch_size(config, dataset, run.mesh),
        run.mesh,
    )
    return Evaluation(
        config=config,
        dataset=dataset,
        eval_feeds=feeds,
        replicated=sharding.replicated(run.mesh),
        total_steps=run.manifest.total_steps,
        origin=run.manifest.origin,
        changes=run.manifest.changes,
    )
