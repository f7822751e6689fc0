"""`flaxmnist labels`: finds training labels that are probably wrong."""

import functools
from collections.abc import Sequence

from flaxmnist import config as configs
from flaxmnist.cli import command, exits
from flaxmnist.inference.label_errors import search
from flaxmnist.paths import path_of
from flaxmnist.rundir import new_folder
from flaxmnist.runtime.console import Console

_DESCRIPTION = """\
Finds training labels that are probably wrong, by models that were not trained on them.

  %(prog)s --config cnn:fast --workdir runs/labels
  %(prog)s --config cnn:fast --workdir runs/labels      (again: resumes)

The training split is divided into folds. For each fold, a run is trained on the others
and predicts it. label_errors.csv and report.html list the labels that the predictions
contradict, by confident learning (Northcutt et al., 2021), the surest first.

--config.NAME=VALUE changes any option; `flaxmnist train --help` lists them.
"""


def run(argv: Sequence[str]) -> None:
    """Searches as the flags say.

    Raises:
      UserError: the flags, the configuration, the data or the directory cannot be used.
    """
    parser = command.Parser("labels", _DESCRIPTION)
    parser.add_recipe()
    parser.add_argument(
        "--workdir",
        type=path_of,
        metavar="DIR",
        help="the directory of the search; default: runs/labels-<UTC time>",
    )
    parser.add_argument(
        "--folds",
        type=int,
        metavar="K",
        default=5,
        help="number of parts, each held out from one run; default: 5",
    )
    args, overrides = parser.parse_config_args(argv)
    command.start_jax(args)
    config = configs.override(configs.load(args.config), overrides)
    with new_folder.chosen(args.workdir, "labels") as workdir:
        Console().line(f"workdir: {workdir}")
        search(config, workdir, args.folds)


main = functools.partial(exits.exit_code, run)
