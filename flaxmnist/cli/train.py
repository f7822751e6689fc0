"""The command line: flags, and how it ends."""

import argparse
import contextlib
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import jax
from ml_collections import ConfigDict

from flaxmnist import config as configs
from flaxmnist.cli import command
from flaxmnist.core.sharding import MAX_CPU_DEVICES
from flaxmnist.data import SPLITS
from flaxmnist.errors import UserError
from flaxmnist.inference import saved_run
from flaxmnist.paths import path_of
from flaxmnist.rundir import folder as workdirs
from flaxmnist.runtime import devices
from flaxmnist.runtime.console import Console, process_age
from flaxmnist.training import loop, sanity

_DESCRIPTION = """\
Trains and evaluates an image classifier.

  %(prog)s --config configs/cnn.py
  %(prog)s --config cnn --workdir runs/a --config.optimizer.learning_rate=3e-4
  %(prog)s --workdir runs/a                  (again: resumes, or says it is finished)
  %(prog)s --workdir runs/a --mode eval      (the best checkpoint, or --step N)
  %(prog)s --workdir runs/a --mode predict --split validation

--config.NAME=VALUE changes any option, as in --config.model.hidden=(256,128).
"""


# Flags that stand for options of the configuration.
_OPTIONS = {
    "devices": "mesh.devices",
    "init_from": "init_from",
    "log_device_placement": "log_device_placement",
}


def _parser() -> command.Parser:
    parser = command.Parser("flaxmnist", _DESCRIPTION)
    parser.add_argument(
        "--config",
        metavar="FILE[:VARIANT]",
        help="a configuration file, or the name of one that comes with flaxmnist: "
        f"{', '.join(configs.shipped())}; by default, that of --workdir",
    )
    parser.add_argument(
        "--workdir",
        type=path_of,
        metavar="DIR",
        help="default: runs/<config>-<UTC time>",
    )
    parser.add_argument("--mode", choices=("train", "eval", "predict"), default="train")
    parser.add_argument(
        "--step", type=int, metavar="N", help="the checkpoint to evaluate or predict by"
    )
    parser.add_argument(
        "--split", choices=SPLITS, help="what --mode predict writes; default: test"
    )
    parser.add_argument(
        "--init_from", metavar="RUN", help="begin with the parameters of another run"
    )
    parser.add_argument(
        "--devices", metavar="IDS", help="use these alone, by id, such as 0,2"
    )
    parser.add_argument(
        "--num_cpu_devices", type=int, metavar="N", help="use N virtual CPU devices"
    )
    parser.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="the address of process 0, where several processes train one model",
    )
    parser.add_argument(
        "--num_processes", type=int, metavar="N", help="the number of processes"
    )
    parser.add_argument(
        "--process_id", type=int, metavar="I", help="the number of this process, from 0"
    )
    parser.add_argument(
        "--log_device_placement",
        action="store_const",
        const="True",
        help="print where each parameter and each array of a batch lives",
    )
    parser.add_argument(
        "--deterministic",
        action="store_true",
        help="the same bits again on GPU, where that is slower",
    )
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="build, train a step and evaluate a batch; write nothing",
    )
    parser.add_argument(
        "--overfit",
        type=int,
        metavar="N",
        help="learn the first N batches by heart; write nothing",
    )
    return parser


def _parse(
    argv: Sequence[str],
) -> tuple[argparse.Namespace, list[tuple[str, str]]]:
    """Returns the flags and the overrides ``[("optimizer.name", "adam"), …]``."""
    args, overrides = _parser().parse_config_args(argv)
    for flag, option in _OPTIONS.items():
        if (value := getattr(args, flag)) is not None:
            overrides.append((option, value))
    count = args.num_cpu_devices
    if count is not None and not 1 <= count <= MAX_CPU_DEVICES:
        raise UserError(f"--num_cpu_devices {count}: expected 1 to {MAX_CPU_DEVICES:,}")
    if args.workdir is not None and args.workdir.name in ("", ".."):
        raise UserError(
            f"--workdir {str(args.workdir)!r}: expected a folder of its own"
        )
    if args.mode != "train" and args.workdir is None:
        raise UserError(f"--mode {args.mode} has no run: expected --workdir DIR")
    if args.step is not None and args.mode == "train":
        raise UserError(
            "--step is for --mode eval and predict: training resumes from the newest"
        )
    if args.split is not None and args.mode != "predict":
        raise UserError("--split is for --mode predict")
    for flag in ("init_from", "log_device_placement", "overfit", "dry_run"):
        if getattr(args, flag) and args.mode != "train":
            raise UserError(f"--{flag} is for --mode train")
    if args.overfit is not None and args.overfit < 1:
        raise UserError(f"--overfit {args.overfit}: expected 1 or more batches")
    if args.overfit is not None and args.dry_run:
        raise UserError("--dry_run and --overfit exclude each other")
    if args.num_cpu_devices is not None and args.platform not in (None, "cpu"):
        raise UserError(f"--num_cpu_devices is not for --platform {args.platform}")
    return args, overrides


def _load_config(args: argparse.Namespace) -> ConfigDict:
    if args.config is not None:
        return configs.load(args.config)
    if args.workdir is not None:
        if config := workdirs.saved_config(args.workdir):
            return config
        start = ", or --config to start one" if args.mode == "train" else ""
        raise UserError(f"no run in {args.workdir}: expected one{start}")
    raise UserError(
        "no --config: expected a file, or one of " + ", ".join(configs.shipped())
    )


def run(argv: Sequence[str]) -> int:
    """Does what the command line says; returns 1 if --overfit does not succeed.

    Raises:
      UserError: it cannot be done.
    """
    args, overrides = _parse(argv)
    peers = (args.coordinator, args.num_processes, args.process_id)
    devices.start_jax(args, args.num_cpu_devices, args.deterministic, peers)
    config = configs.override(_load_config(args), overrides)
    if args.mode == "eval":
        saved_run.evaluate_checkpoint(config, args.workdir, args.step)
        return 0
    if args.mode == "predict":
        split = args.split or "test"
        saved_run.predict_split(config, args.workdir, split, args.step)
        return 0
    if args.dry_run:
        sanity.dry_run(config)
        return 0
    if args.overfit is not None:
        return 0 if sanity.overfit(config, args.overfit) else 1
    console = Console()
    with contextlib.ExitStack() as stack:
        workdir = args.workdir
        if workdir is None:
            if jax.process_count() > 1:
                raise UserError(
                    "several processes: expected --workdir DIR, one for all"
                )
            name = Path(args.config.partition(":")[0]).stem
            name = f"{name}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
            workdir = stack.enter_context(workdirs.created(Path("runs"), name))
        console.line(f"workdir: {workdir}")
        started = time.perf_counter() - process_age()
        loop.train_and_evaluate(config, workdir, console, started)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return command.exit_code(run, argv)
