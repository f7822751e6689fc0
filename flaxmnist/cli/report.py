"""`flaxmnist report`: writes a run's report again."""

import functools
import os
from collections.abc import Sequence

from flaxmnist.cli import command
from flaxmnist.errors import UserError
from flaxmnist.inference.saved_run import open_saved
from flaxmnist.paths import path_of
from flaxmnist.report.html import History, write_report
from flaxmnist.rundir import folder as workdirs
from flaxmnist.rundir import integrity
from flaxmnist.runtime.console import Console
from flaxmnist.training.results import collect
from flaxmnist.training.summary import summarize

_DESCRIPTION = """\
Writes a run's report.html again, perhaps beside other runs.

  %(prog)s --workdir runs/a
  %(prog)s --workdir runs/a --compare runs/b runs/c

Runs that differ in their seed alone are drawn as one: mean and standard deviation.
--config.data.dir=DIR names the data of the run where they are now.
"""


def run(argv: Sequence[str]) -> None:
    """Does what the command line says.

    Raises:
      UserError: it cannot be done.
    """
    parser = command.Parser("report", _DESCRIPTION)
    parser.add_run()
    parser.add_argument(
        "--compare",
        type=lambda text: path_of(text, "--compare"),
        metavar="DIR",
        nargs="+",
        default=[],
    )
    args, overrides = parser.parse_config_args(argv)
    command.start_jax(args)
    # Each once, and none beside itself.
    unique = {os.path.realpath(workdir): workdir for workdir in args.compare}
    unique.pop(os.path.realpath(args.workdir), None)
    integrity.check_links(args.workdir)
    others = [History.read(workdir) for workdir in unique.values()]
    console = Console()
    opened, state, step, last = open_saved(args.workdir, args.step, console, overrides)
    summary = workdirs.saved_summary(args.workdir)
    if summary is None or (summary.step, summary.evaluated_step) != (last, step):
        summary = summarize(opened, state, last, step, console)
    try:
        path = write_report(collect(opened, state, summary), args.workdir, others)
    except OSError as error:
        raise UserError(
            f"{args.workdir} cannot be written ({error.strerror})"
        ) from None
    console.line(str(path))


main = functools.partial(command.exit_code, run)
