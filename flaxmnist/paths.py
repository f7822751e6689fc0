"""Local paths that a user names: checked, with ``~`` expanded."""

import os
import re
from pathlib import Path
from typing import Any

from flaxmnist.errors import UserError, shown

# Bytes of one name, as in Linux, and of a run directory's path: Linux allows 4,096, of
# which the files of a checkpoint need the rest.
MAX_NAME, MAX_PATH = 255, 3_800


def path_of(value: str | os.PathLike[str], option: str = "--workdir") -> Path:
    """Returns a user's path, with a leading ``~`` expanded.

    Args:
      value: the path.
      option: the name of the option, for the error.

    Raises:
      UserError: the path cannot be used on this machine.
    """
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    try:
        return parse(text)
    except UserError as error:
        raise UserError(f"{option}={shown(text)}{error}") from None


def parse(text: Any) -> Path:
    """Returns the path that `text` names, with a leading ``~`` expanded.

    Raises:
      UserError: completes the sentence ``"option=value…"``.
    """
    if not isinstance(text, str) or not text:
        raise UserError(": expected a path")
    # A `Path` has one slash where a URL has two.
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text):
        raise UserError(" is a URL; expected a path on this machine")
    if re.search(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", text):
        raise UserError(
            " contains a control character, or bytes that are not UTF-8; expected a "
            "path of printable characters. Rename it"
        )
    # TensorStore would read it as a slash.
    if os.sep == "/" and "\\" in text:
        raise UserError(
            " contains a backslash; expected a path with / between its names"
        )
    try:
        path = Path(text).expanduser()
    except RuntimeError:
        raise UserError(
            " has no home directory to stand for ~; expected an existing user and, for "
            "~ alone, the environment variable HOME"
        ) from None
    try:
        full = os.path.abspath(path)
    except OSError:
        raise UserError(
            " is relative, but the current directory does not exist any more. Change "
            "to another directory, or give a path that starts with /"
        ) from None
    names = [len(os.fsencode(name)) for name in full.split(os.sep)]
    if max(names) > MAX_NAME or sum(names) + len(names) > MAX_PATH:
        raise UserError(
            f" is too long; expected at most {MAX_NAME} bytes in each name and "
            f"{MAX_PATH:,} in all"
        )
    return path
