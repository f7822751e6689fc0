"""Speed of variations of a recipe, measured in turns in one process.

python -m benchmarks.turns cnn:fast '{}' '{"model.layers": "16C5-MP2-32C3-MP2-128N"}'

Each variation is a JSON object of options. A turn trains on about 7,680 images and
evaluates 5,000; the figures are medians of the turns, in images/s.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence

import jax

from flaxmnist import config as configs
from flaxmnist.core.steps import train_steps
from flaxmnist.training.evaluate import evaluate
from flaxmnist.training.experiment import Experiment
from flaxmnist.training.resume import begin

TURNS, IMAGES = 5, 7_680


def turns_of(config: configs.Config) -> dict[str, Callable[[], float]]:
    """Returns functions that train and evaluate; each returns its images/s."""
    experiment = Experiment.build(config)
    progress = begin(experiment)
    state, metrics = progress.state, progress.metrics_since_log
    feed, steps = experiment.eval_feeds["validation"], IMAGES // config.batch_size

    def train() -> float:
        nonlocal state, metrics
        began = time.perf_counter()
        for batches, count in experiment.feed.chunks(0, steps):
            number = experiment.put(count)
            state, metrics = train_steps(state, metrics, batches, number)
        jax.block_until_ready(state.step)
        return steps * config.batch_size / (time.perf_counter() - began)

    def evaluation() -> float:
        began = time.perf_counter()
        count = int(evaluate(state, feed, experiment.replicated).count)
        return count / (time.perf_counter() - began)

    return {"training": train, "evaluation": evaluation}


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, and prints a line for each variation."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config")
    parser.add_argument("variations", nargs="+", type=json.loads)
    args = parser.parse_args(argv)
    recipe = configs.load(args.config)
    runs = [turns_of(configs.override(recipe, one)) for one in args.variations]
    speeds = [{name: [] for name in run} for run in runs]
    for turn in range(TURNS + 1):
        for run, found in zip(runs, speeds, strict=True):
            for name, measure in run.items():
                speed = measure()
                if turn:  # The first one compiles.
                    found[name].append(speed)
    for variation, found in zip(args.variations, speeds, strict=True):
        medians = {
            name: round(statistics.median(values)) for name, values in found.items()
        }
        print(f"{json.dumps(variation)}: {medians}", flush=True)


if __name__ == "__main__":
    main()
