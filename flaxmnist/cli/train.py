"""`flaxmnist train`: trains a model, or resumes a run."""

import argparse
import ast
import functools
import time
from collections.abc import Sequence

from flaxmnist import config as configs
from flaxmnist.cli import command, exits
from flaxmnist.errors import UserError
from flaxmnist.paths import path_of
from flaxmnist.rundir import new_folder, population, varying
from flaxmnist.runtime.console import Console, process_age
from flaxmnist.training import loop, sanity
from flaxmnist.training.population import train_members

_DESCRIPTION = """\
Trains and evaluates an image classifier, or resumes a run.

  %(prog)s --config configs/cnn.py
  %(prog)s --config cnn --workdir runs/a --config.optimizer.learning_rate=3e-4
  %(prog)s --workdir runs/a                  (again: resumes, or says it is finished)
  %(prog)s --config cnn --workdir runs/p --seeds 0:8    (a population of eight runs)

--config.NAME=VALUE changes any option, as in --config.model.hidden=256,128.
All options are listed at the end.
"""


def _parser() -> command.Parser:
    parser = command.Parser("train", _DESCRIPTION)
    parser.epilog = configs.help_text()
    parser.add_recipe(default="that of --workdir")
    parser.add_argument(
        "--workdir",
        type=path_of,
        metavar="DIR",
        help="the run directory; default: runs/<config>-<UTC time>",
    )
    parser.add_argument(
        "--init_from", metavar="RUN", help="start with the parameters of another run"
    )
    parser.add_argument(
        "--allow_change",
        action="store_true",
        help="let a run that resumes change batch_size, grad_accumulation and the "
        "options of optimizer, loss and augment",
    )
    parser.add_trust()
    parser.add_argument(
        "--log_device_placement",
        action="store_true",
        help="print the devices of each parameter and each array of a batch",
    )
    group = parser.add_argument_group("populations, one run after the other")
    group.add_argument(
        "--seeds", metavar="SEEDS", help="train with each seed: FIRST:END, or 3,5,9"
    )
    group.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="NAME=VALUES",
        help="train with each value of an option, such as "
        "optimizer.learning_rate=1e-3,2e-3; may be repeated",
    )
    parser.add_devices()
    checks = parser.add_argument_group("checks that write nothing")
    checks.add_argument(
        "--dry_run", action="store_true", help="train a step and evaluate a batch"
    )
    checks.add_argument(
        "--overfit",
        type=int,
        metavar="N",
        help="train on the first N batches until they are memorized",
    )
    return parser


def _parse(
    argv: Sequence[str],
) -> tuple[argparse.Namespace, list[tuple[str, str]]]:
    """Returns the flags and the overrides ``[("optimizer.name", "adam"), …]``."""
    args, overrides = _parser().parse_config_args(argv)
    if args.init_from is not None:
        overrides.append(("init_from", args.init_from))
    if args.log_device_placement:
        overrides.append(("log_device_placement", "True"))
    if args.workdir is not None and args.workdir.name in ("", ".."):
        raise UserError(
            f"--workdir={str(args.workdir)!r} is not a name; expected a directory for "
            "this run alone"
        )
    if args.overfit is not None and args.overfit < 1:
        raise UserError(f"--overfit={args.overfit}: expected 1 or more batches")
    if args.overfit is not None and args.dry_run:
        raise UserError("--dry_run and --overfit exclude each other; remove one")
    return args, overrides


def _seeds(text: str) -> Sequence[int]:
    """Returns the seeds of ``0:8`` (8 is excluded) or ``3,5,9``.

    Raises:
      UserError: it is something else.
    """
    try:
        first, colon, end = text.partition(":")
        if colon:
            return range(int(first), int(end))
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(
            f"--seeds={text!r}: expected FIRST:END, such as 0:8, or integers, such as "
            "3,5,9"
        ) from None


def _sweep(flags: Sequence[str]) -> dict[str, list[str]]:
    """Returns the values of each swept option, as texts.

    Raises:
      UserError: a flag has another form, or an option is given twice.
    """
    sweep: dict[str, list[str]] = {}
    for flag in flags:
        name, _, values = flag.partition("=")
        if not name or not (parts := _split(values)):
            raise UserError(
                f"--sweep={flag!r}: expected NAME=VALUES, such as "
                "optimizer.learning_rate=1e-3,2e-3; close brackets and quotes"
            )
        if name in sweep:
            raise UserError(
                f"--sweep {name} is given twice; give all its values in one"
            )
        sweep[name] = parts
    return sweep


def _split(text: str) -> list[str]:
    """Returns the parts between the commas outside of brackets and quotes.

    The list is empty if a part is empty, or a bracket or a quote is not closed.
    """
    try:
        parsed = ast.parse(f"[{text}]", mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        # Some names are not Python, such as those of files.
        parts = text.split(",")
        has_brackets = not {*text}.isdisjoint("()[]{}'\"")
        return [] if has_brackets or not all(parts) else parts
    found = parsed.elts if isinstance(parsed, ast.List) else []
    parts = [ast.get_source_segment(f"[{text}]", one) or "" for one in found]
    return parts if all(parts) else []


def _members(
    args: argparse.Namespace,
    overrides: list[tuple[str, str]],
    config: configs.Config,
) -> tuple[population.Member, ...] | None:
    """Returns the members of a population; None if the flags describe a single run.

    Raises:
      UserError: a flag is invalid, or excludes another.
    """
    is_new = bool(args.sweep) or args.seeds is not None
    known = None
    if args.workdir is not None:
        known = population.saved_members(args.workdir)
    if not is_new and known is None:
        return None
    for flag in ("dry_run", "overfit", "allow_change"):
        if getattr(args, flag) not in (None, False):
            raise UserError(f"--{flag} is for a single run, not for a population")
    sweep = _sweep(args.sweep)
    former = {name for one in known or () for name in one.options}
    seeds = None if args.seeds is None else _seeds(args.seeds)
    varied = {*former, *sweep} | ({"seed"} if seeds is not None else set())
    varying.check_free(dict(overrides), varied)
    return varying.vary(config, seeds, sweep) if is_new else ()


def run(argv: Sequence[str]) -> int:
    """Trains as the flags say; returns 1 if --overfit does not succeed.

    Raises:
      UserError: the flags, the configuration, the data or the run directory cannot be
        used.
    """
    args, overrides = _parse(argv)
    command.start_jax(args, several=True)
    config = command.load_config(args, overrides)
    members = _members(args, overrides, config)
    if args.dry_run:
        sanity.dry_run(config)
        return 0
    if args.overfit is not None:
        return 0 if sanity.overfit(config, args.overfit) else 1
    console = Console()
    with new_folder.chosen(args.workdir, args.config or "") as workdir:
        console.line(f"workdir: {workdir}")
        started = time.perf_counter() - process_age()
        if members is not None:
            train_members(config, workdir, members, started=started)
            return 0
        loop.train_and_evaluate(
            config,
            workdir,
            allow_change=args.allow_change,
            console=console,
            started=started,
        )
    return 0


main = functools.partial(exits.exit_code, run)
