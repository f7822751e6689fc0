"""The command line: flags, and how it ends."""

import argparse
import logging
import os
import platform
import sys
import warnings
import zlib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import jax
import psutil
from absl import logging as absl_logging
from ml_collections import ConfigDict

from flaxmnist import config as configs
from flaxmnist import modes, train
from flaxmnist import workdir as workdirs
from flaxmnist.checks import UserError, did_you_mean
from flaxmnist.data import SPLITS
from flaxmnist.data.download import cache_dir

_DESCRIPTION = """\
Trains and evaluates an image classifier.

  %(prog)s --config configs/cnn.py
  %(prog)s --config cnn --workdir runs/a --config.optimizer.learning_rate=3e-4
  %(prog)s --workdir runs/a                  (again: resumes, or says it is finished)
  %(prog)s --workdir runs/a --mode eval      (the best checkpoint, or --step N)
  %(prog)s --workdir runs/a --mode predict --split validation

--config.NAME=VALUE changes any option, as in --config.model.hidden=(256,128).
"""


# What JAX calls each, in the order in which they are tried.
_PLATFORMS = {"cpu": ("cpu",), "gpu": ("cuda,cpu", "rocm,cpu"), "tpu": ("tpu,cpu",)}
# Flags that stand for options of the configuration.
_OPTIONS = {
    "devices": "mesh.devices",
    "init_from": "init_from",
    "log_device_placement": "log_device_placement",
}


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
    parser.add_argument("--platform", choices=_PLATFORMS, help="default: the best")
    parser.add_argument(
        "--devices", metavar="IDS", help="use these alone, by id, such as 0,2"
    )
    parser.add_argument(
        "--num_cpu_devices", type=int, metavar="N", help="use N virtual CPU devices"
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
        "--no_cache",
        action="store_true",
        help="compile anew, and keep nothing of it for the next run",
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
    for flag, option in _OPTIONS.items():
        if (value := getattr(args, flag)) is not None:
            overrides.append((option, value))
    if args.num_cpu_devices is not None and not 1 <= args.num_cpu_devices <= 1024:
        raise UserError(
            f"--num_cpu_devices {args.num_cpu_devices}: expected 1 to 1,024"
        )
    if args.workdir is not None and not args.workdir.name:
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
    for flag in ("init_from", "log_device_placement"):
        if getattr(args, flag) is not None and args.mode != "train":
            raise UserError(f"--{flag} is for --mode train")
    if args.num_cpu_devices is not None and args.platform not in (None, "cpu"):
        raise UserError(f"--num_cpu_devices is not for --platform {args.platform}")
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
    for name in ("jax", "orbax"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")


def _keep_programs() -> None:
    """Has JAX keep what it compiles, for the next run; a damaged file is not used."""
    # Programs are of one kind of processor, and a home may be shared by several.
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else [platform.processor()]
    kind = next((line for line in lines if line.startswith("flags")), lines[0])
    folder = cache_dir() / "programs" / f"{zlib.crc32(kind.encode()):08x}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # A cache that cannot be kept is no reason not to run.
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def _start_jax(args: argparse.Namespace) -> None:
    """Chooses devices; JAX reads all of it when it first looks for them.

    Raises:
      UserError: there is no such platform.
    """
    # Others may be on the same GPU; a user who sets the variable decides.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    # So does one who keeps programs elsewhere.
    if not args.no_cache and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        _keep_programs()
    if args.deterministic:
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true".strip()
    if args.num_cpu_devices is not None:
        jax.config.update("jax_num_cpu_devices", args.num_cpu_devices)
    wanted = "cpu" if args.num_cpu_devices is not None else args.platform
    if wanted is None:
        return
    reason = ""
    # "gpu" would fail in JAX where only one of the two kinds is installed.
    for name in _PLATFORMS[wanted]:
        jax.config.update("jax_platforms", name)
        try:
            if jax.devices()[0].platform == wanted:
                return
        except RuntimeError as error:
            reason = f" ({str(error).splitlines()[0]})"
        except AssertionError:  # JAX's, where it was built without that platform.
            pass
        jax.config.update("jax_platforms", None)
    there = ", ".join(sorted({device.platform for device in jax.devices()}))
    raise UserError(
        f"--platform {wanted}: there is none here, only {there}; for GPU and TPU, "
        f"install the jax build for them{reason}"
    )


def run(argv: Sequence[str]) -> None:
    """Does what the command line says.

    Raises:
      UserError: it cannot be done.
    """
    args, overrides = _parse(argv)
    if not args.verbose:
        _silence()
    _start_jax(args)
    config = configs.override(_load_config(args.config, args.workdir), overrides)
    if args.mode == "eval":
        modes.evaluate_checkpoint(config, args.workdir, args.step)
        return
    if args.mode == "predict":
        split = args.split or "test"
        modes.predict_split(config, args.workdir, split, args.step)
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
