"""`flaxmnist report`: writes a run's report again, or compares runs."""

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path

from flaxmnist import options
from flaxmnist.cli import command, exits
from flaxmnist.errors import UserError
from flaxmnist.inference.comparison import compare_runs
from flaxmnist.inference.ensemble import NO_STEP
from flaxmnist.inference.report import report_population
from flaxmnist.inference.saved_run import open_run
from flaxmnist.paths import path_of
from flaxmnist.rundir import folder as workdirs
from flaxmnist.rundir import population

_DESCRIPTION = """\
Writes a run's report.html again, or a page that compares runs.

  %(prog)s runs/a                            (writes runs/a/report.html)
  %(prog)s runs/* --output compare.html
  %(prog)s --workdir runs/a --compare runs/b runs/c
                                             (writes runs/a/comparison.html)

A comparison shows the options that differ, curves, accuracy, time and speed. Runs that
differ only in their seed are one row and one curve: mean and standard deviation. Each
row is compared with the first: two runs by McNemar's test, several seeds by a t test.
A directory may be that of a population. A comparison never changes a report.
If the data have moved, name their directory with --config.data.dir=DIR.
"""


def _parser() -> command.Parser:
    parser = command.Parser("report", _DESCRIPTION)
    parser.add_run(required=False)
    parser.add_argument(
        "runs",
        type=lambda text: path_of(text, "RUN"),
        metavar="RUN",
        nargs="*",
        help="run directories; several are compared",
    )
    parser.add_argument(
        "--compare",
        type=lambda text: path_of(text, "--compare"),
        metavar="DIR",
        nargs="+",
        default=[],
        help="other runs or populations to compare with that of --workdir",
    )
    parser.add_argument(
        "--output",
        type=lambda text: path_of(text, "--output"),
        metavar="FILE",
        help="the comparison; default: comparison.html, in --workdir if given",
    )
    return parser


def _check(args: argparse.Namespace, runs: Sequence[Path], compares: bool) -> None:
    """Raises UserError if flags are missing, or have no effect together."""
    if not runs:
        raise UserError("expected run directories, such as runs/*, or --workdir DIR")
    if args.compare and args.workdir is None:
        raise UserError("--compare needs --workdir; or give all runs without a flag")
    if compares and args.step is not None:
        raise UserError("--step is for the report of one run, not for a comparison")
    if args.output is not None and args.output.suffix != ".html":
        raise UserError(f"--output={args.output}: expected a name that ends in .html")


def _has_no_ensemble(workdir: Path) -> bool:
    """Returns whether members of a population differ in their model or are missing."""
    members = population.saved_members(workdir) or ()
    return not population.has_one_model(members) or bool(
        workdirs.unfinished(workdir, members)
    )


def run(argv: Sequence[str]) -> None:
    """Writes the report or the comparison as the flags say.

    Raises:
      UserError: the runs or their data cannot be used, or the page not written.
    """
    args, overrides = _parser().parse_config_args(argv)
    own = [args.workdir] if args.workdir is not None else []
    runs = [*own, *args.runs, *args.compare]
    compares = len(runs) > 1 or args.output is not None
    _check(args, runs, compares)
    command.start_jax(args)
    for path in runs if args.trust_code else ():
        workdirs.permit_all(path)
    if not compares and _has_no_ensemble(runs[0]):
        options.check("", {"step": args.step}, {"step": NO_STEP})
        for name, _ in overrides:
            raise UserError(f"--config.{name} has no effect on this population")
        report_population(runs[0])
        return
    if not compares:
        trust = args.trust_code
        open_run(runs[0], args.step, overrides, trust_code=trust).report()
        return
    folder = own[0] if own else Path()
    compare_runs(runs, args.output or folder / "comparison.html", overrides)


main = functools.partial(exits.exit_code, run)
