"""`flaxmnist eval`: evaluates a run."""

import functools
from collections.abc import Sequence

from flaxmnist.cli import command, exits
from flaxmnist.inference.saved_run import open_run

_DESCRIPTION = """\
Evaluates a run's best checkpoint on its three splits; writes nothing.

  %(prog)s --workdir runs/a
  %(prog)s --workdir runs/a --step 1716
  %(prog)s --workdir runs/a --translate      (each image and four shifted copies)

If the data have moved, name their directory with --config.data.dir=DIR.
"""


def run(argv: Sequence[str]) -> None:
    """Evaluates a run as the flags say.

    Raises:
      UserError: the run, its checkpoint or its data cannot be used.
    """
    parser = command.Parser("eval", _DESCRIPTION)
    parser.add_run()
    parser.add_config()
    parser.add_argument(
        "--translate",
        action="store_true",
        help="predict by the mean over five copies of an image, shifted by 0 or 1 "
        "pixel; the table names it",
    )
    parser.add_devices()
    args, overrides = parser.parse_config_args(argv)
    command.start_jax(args, several=True)
    config = command.load_config(args, overrides)
    run = open_run(args.workdir, args.step, config=config, use_mesh=True)
    run.summarize(translate=args.translate)


main = functools.partial(exits.exit_code, run)
