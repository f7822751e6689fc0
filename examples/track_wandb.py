"""Sends the figures of a run to Weights & Biases.

    pip install wandb
    python examples/track_wandb.py

Without an account or a network, set WANDB_MODE=offline; `wandb sync` sends
the run later.
"""

import wandb

import flaxmnist


def main(config="mlp", **options):
    """Trains; `options` are those of `flaxmnist.train`. Returns the finished run."""
    with wandb.init(project="mnist") as tracked:

        def log(result):
            """Receives each logged record, and the summary at the end."""
            tracked.log(result.scalars(), step=result.step)

        run = flaxmnist.train(config, hooks=[log], **options)
        tracked.config.update(run.summary.config)
    return run


if __name__ == "__main__":
    main()
