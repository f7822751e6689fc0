"""`flaxmnist report`: writes a run's report again."""

import functools
from collections.abc import Sequence

from flaxmnist.cli import command, exits
from flaxmnist.inference.saved_run import open_run
from flaxmnist.paths import path_of
from flaxmnist.rundir import folder as workdirs

_DESCRIPTION = """\
Writes a run's report.html again, alone or with other runs.

  %(prog)s --workdir runs/a
  %(prog)s --workdir runs/a --compare runs/b runs/c

Runs that differ only in their seed are one row and one curve: mean and standard
deviation. Each row is compared with the first: two runs by McNemar's test, several
seeds by a t test. A directory may be that of a population.
If the data have moved, name their directory with --config.data.dir=DIR.
"""


def run(argv: Sequence[str]) -> None:
    """Writes the report as the flags say.

    Raises:
      UserError: the runs or their data cannot be used, or the report not written.
    """
    parser = command.Parser("report", _DESCRIPTION)
    parser.add_run()
    parser.add_argument(
        "--compare",
        type=lambda text: path_of(text, "--compare"),
        metavar="DIR",
        nargs="+",
        default=[],
        help="other runs or populations to compare with this one",
    )
    args, overrides = parser.parse_config_args(argv)
    command.start_jax(args)
    for path in args.compare if args.trust_code else ():
        workdirs.permit_all(path)
    trust = args.trust_code
    run = open_run(args.workdir, args.step, overrides, trust_code=trust)
    run.report(args.compare)


main = functools.partial(exits.exit_code, run)
