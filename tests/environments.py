"""Fresh virtual environments, for tests of an installation."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def install(python: Path, *arguments: str | Path) -> None:
    """Installs packages with uv if it is there, else with the environment's pip."""
    command: list[str | Path] = [python, "-m", "pip", "install"]
    if importlib.util.find_spec("uv"):
        command = [sys.executable, "-m", "uv", "pip", "install", "--python", python]
    elif uv := shutil.which("uv"):
        command = [uv, "pip", "install", "--python", python]
    subprocess.run([*command, "--quiet", *arguments], check=True)


def new_environment(folder: Path, python: str | Path = sys.executable) -> Path:
    """Makes an environment with pip and returns its interpreter.

    Skips the test if no package index can be reached.
    """
    subprocess.run([python, "-m", "venv", folder], check=True)
    interpreter = folder / "bin/python"
    try:
        install(interpreter, "--upgrade", "pip")
    except subprocess.CalledProcessError:
        pytest.skip("needs a package index, such as pypi.org")
    return interpreter
