"""`flaxmnist export`: writes a run's best model for other programs."""

import functools
from collections.abc import Sequence

from flaxmnist.cli import command, exits
from flaxmnist.errors import ParityError
from flaxmnist.export.write import FORMATS
from flaxmnist.inference.saved_run import open_run

_DESCRIPTION = """\
Exports a run's best model, compares it with the checkpoint, and adds a model card.

  %(prog)s --workdir runs/a --format stablehlo    (jax.export, for cpu, cuda and tpu)
  %(prog)s --workdir runs/a --format onnx         (needs 'flaxmnist[onnx]')
  %(prog)s --workdir runs/a --format numpy        (needs neither JAX nor flaxmnist)
  %(prog)s --workdir runs/a --format web          (a page to draw on, in one file)
  %(prog)s --workdir runs/a --format safetensors  (for the Hugging Face hub)

If the data have moved, name their directory with --config.data.dir=DIR.
"""


def run(argv: Sequence[str]) -> int:
    """Exports as the flags say; returns 1 if the export differs from the checkpoint.

    Raises:
      UserError: the run or the format cannot be used, or the export not written.
    """
    parser = command.Parser("export", _DESCRIPTION)
    parser.add_run()
    parser.add_argument(
        "--format", choices=FORMATS, required=True, help="the format to write"
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        help="the directory to write; an export in it is replaced; default: "
        "export/FORMAT in the run directory",
    )
    args, overrides = parser.parse_config_args(argv)
    command.start_jax(args)
    try:
        run = open_run(args.workdir, args.step, overrides, trust_code=args.trust_code)
        run.export(args.format, args.output)
    except ParityError as error:
        exits.print_error(str(error))
        return 1
    return 0


main = functools.partial(exits.exit_code, run)
