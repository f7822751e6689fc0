"""The command line: flags, and how it ends."""

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import jax
import psutil
from absl import logging as absl_logging
from ml_collections import ConfigDict

from flaxmnist import config as configs
from flaxmnist import train
from flaxmnist import workdir as workdirs
from flaxmnist.checks import UserError, did_you_mean

_DESCRIPTION = """\
Trains and evaluates an image classifier.

  %(prog)s --config configs/cnn.py
  %(prog)s --config cnn --workdir runs/a --config.optimizer.learning_rate=3e-4
  %(prog)s --workdir runs/a                  (again: resumes, or says it is finished)
  %(prog)s --workdir runs/a --mode eval      (the best checkpoint, or --step N)

--config.NAME=VALUE changes any option, as in --config.model.hidden=(256,128).
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UserError(f"{message}; see --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="flaxmnist",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        metavar="FILE[:VARIANT]",
        help="a configuration file, or the name of one that comes with flaxmnist: "
        f"{', '.join(configs.shipped())}; by default, that of --workdir",
    )
    parser.add_argument(
        "--workdir", type=Path, metavar="DIR", help="default: runs/<config>-<UTC time>"
    )
    parser.add_argument("--mode", choices=("train", "eval"), default="train")
    parser.add_argument(
        "--step", type=int, metavar="N", help="the checkpoint that --mode eval restores"
    )
    parser.add_argument(
        "--num_cpu_devices", type=int, metavar="N", help="use N virtual CPU devices"
    )
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="show what the libraries log"
    )
    return parser


def _parse(
    argv: Sequence[str],
) -> tuple[argparse.Namespace, list[tuple[str, str]]]:
    """Returns the flags and the overrides ``[("optimizer.name", "adam"), …]``."""
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    overrides = []
    remaining = iter(rest)
    for flag in remaining:
        if not flag.startswith("--config."):
            known = [name for name in parser._option_string_actions if name[:2] == "--"]
            raise UserError(f"unknown argument {flag!r}{did_you_mean(flag, known)}")
        key, equals, value = flag.removeprefix("--config.").partition("=")
        if not equals and (value := next(remaining, "")) == "":
            raise UserError(f"{flag} has no value: expected {flag}=VALUE")
        overrides.append((key, value))
    if args.num_cpu_devices is not None and not 1 <= args.num_cpu_devices <= 1024:
        raise UserError(
            f"--num_cpu_devices {args.num_cpu_devices}: expected 1 to 1,024"
        )
    if args.workdir is not None and not args.workdir.name:
        raise UserError(
            f"--workdir {str(args.workdir)!r}: expected a folder of its own"
        )
    if args.mode == "eval" and args.workdir is None:
        raise UserError("--mode eval has no run to evaluate: expected --workdir DIR")
    if args.step is not None and args.mode != "eval":
        raise UserError("--step is for --mode eval: training resumes from the newest")
    return args, overrides


def _load_config(spec: str | None, workdir: Path | None) -> ConfigDict:
    if spec is not None:
        return configs.load(spec)
    if workdir is not None:
        if config := workdirs.saved_config(workdir):
            return config
        raise UserError(f"no run in {workdir}: expected one, or --config to start one")
    raise UserError(
        "no --config: expected a file, or one of " + ", ".join(configs.shipped())
    )


def _silence() -> None:
    absl_logging.set_verbosity(absl_logging.ERROR)
    for name in ("jax", "orbax", "tensorboardX"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")


def run(argv: Sequence[str]) -> None:
    """Does what the command line says.

    Raises:
      UserError: it cannot be done.
    """
    args, overrides = _parse(argv)
    if not args.verbose:
        _silence()
    if args.num_cpu_devices is not None:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", args.num_cpu_devices)
    config = configs.override(_load_config(args.config, args.workdir), overrides)
    if args.mode == "eval":
        train.evaluate_checkpoint(config, args.workdir, args.step)
        return
    workdir = args.workdir
    if workdir is None:
        name = Path(args.config.partition(":")[0]).stem
        workdir = Path("runs", f"{name}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}")
    print(f"workdir: {workdir}", flush=True)
    train.train_and_evaluate(config, workdir, started=psutil.Process().create_time())


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, 2 for a user's mistake, 130 after Ctrl-C."""
    try:
        run(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        print(f"flaxmnist: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "flaxmnist: interrupted; the same command with the same --workdir resumes "
            "from the last checkpoint",
            file=sys.stderr,
        )
        return 130
    except BrokenPipeError:  # Whoever read the output has gone, as `head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
