"""Fresh virtual environments, for tests of an installation."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def find_python(version: str) -> str:
    """Returns an interpreter of a version such as 3.13; skips the test if none runs."""
    own = Path.home().glob(f".pyenv/versions/{version}.*/bin/python")
    for candidate in (sys.executable, f"python{version}", *map(str, own)):
        if path := shutil.which(candidate):
            program = "import sys; print('%d.%d' % sys.version_info[:2], end='')"
            # A shim of pyenv exists for versions that it does not run.
            done = subprocess.run([path, "-c", program], capture_output=True, text=True)
            if done.stdout == version:
                return path
    pytest.skip(f"needs Python {version} on PATH or in ~/.pyenv/versions")


def install(python: Path, *arguments: str | Path) -> None:
    """Installs packages with uv if it is there, else with the environment's pip."""
    command: list[str | Path] = [python, "-m", "pip", "install"]
    if importlib.util.find_spec("uv"):
        command = [sys.executable, "-m", "uv", "pip", "install", "--python", python]
    elif uv := shutil.which("uv"):
        command = [uv, "pip", "install", "--python", python]
    subprocess.run([*command, "--quiet", *arguments], check=True)


def freeze(python: Path) -> set[str]:
    """Returns the name and version of each installed package, as pip prints them."""
    command = [python, "-m", "pip", "freeze", "--all"]
    return set(subprocess.check_output(command, text=True).splitlines())


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
