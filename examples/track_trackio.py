"""Sends the figures of a run to trackio, which keeps them on this machine.

    pip install trackio
    python examples/track_trackio.py
    trackio show --project mnist

TRACKIO_DIR names the directory of its database.
"""

import trackio

import flaxmnist


def main(config="mlp", **options):
    """Trains; `options` are those of `flaxmnist.train`. Returns the finished run."""
    trackio.init(project="mnist")

    def log(result):
        """Receives each logged record, and the summary at the end."""
        trackio.log(result.scalars(), step=result.step)

    run = flaxmnist.train(config, hooks=[log], **options)
    trackio.finish()
    return run


if __name__ == "__main__":
    main()
