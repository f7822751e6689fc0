"""The version matrix: `nox` runs every column, `nox -s newest` one.

What follows `--` goes to pytest: `nox -s lowest -- tests/core/test_steps.py`.
"""

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv"
# A column whose interpreter is missing fails; it is not skipped.
nox.options.error_on_missing_interpreters = True

# Pins of Google Colab's Python 3.13 runtime without an accelerator:
# googlecolab/backend-info, commit a724079, 2026-08-19.
COLAB = "tests/fixtures/colab-constraints.txt"
VERSIONS = "import jax, flax; print('jax', jax.__version__, 'flax', flax.__version__)"


def _test(session: nox.Session, *install: str) -> None:
    session.install("-e", ".[test]", *install)
    session.run("python", "-c", VERSIONS)
    session.run("pytest", "-q", "-n", "2", *session.posargs)


@nox.session(python="3.11")
def default(session: nox.Session) -> None:
    """Tests what pip installs on the oldest supported Python."""
    _test(session)


@nox.session(python="3.11")
def lowest(session: nox.Session) -> None:
    """Tests the lower bounds that pyproject.toml declares."""
    _test(session, "--resolution", "lowest-direct")


@nox.session(python=["3.12", "3.13"])
def colab(session: nox.Session) -> None:
    """Tests the versions that Google Colab has preinstalled."""
    _test(session, "--constraint", COLAB)


@nox.session(python="3.13")
def newest(session: nox.Session) -> None:
    """Tests the newest version of every package."""
    _test(session, "--upgrade")


@nox.session(python="3.11")
def trackers(session: nox.Session) -> None:
    """Runs the examples of hooks with the newest trackers, offline."""
    session.install("-e", ".[test,trackers]")
    session.run("pytest", "-q", "-m", "slow", "tests/test_trackers.py")


@nox.session(python="3.11")
def docs(session: nox.Session) -> None:
    """Builds the documentation; a warning, such as of a dead link, is an error."""
    session.install("-e", ".[docs]")
    session.run("sphinx-build", "-qW", "-b", "html", "docs", "docs/_build/html")


@nox.session(python="3.11")
def lint(session: nox.Session) -> None:
    """Checks style, format and types."""
    session.install("-e", ".[dev]")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
