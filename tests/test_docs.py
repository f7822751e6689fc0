"""The code in the documentation runs, and its commands accept their flags."""

import importlib
import re
import shlex
import shutil
import sys
from unittest import mock

import pytest
from helpers import ROOT

import flaxmnist
from flaxmnist.__main__ import COMMANDS
from flaxmnist.cli import command, train
from flaxmnist.training import finish, loop, sanity

PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md")))
}
# A block of Python, and the file that the line before it names, if any.
BLOCK = re.compile(r"(?:`(\w+\.py)`:\n\n)?```python\n(.*?)```", re.S)
# Matches blocks of every language: the end of a block looks like the start of another.
FENCED = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.M | re.S)
SHELLS = ("", "bash", "sh")
COMMAND = re.compile(r"(?:\$ )?(?:flaxmnist (\w+)|python -m flaxmnist\.main) (.*)")
# The others train runs, so they are among the slow tests.
SHORT = "docs/library.md"
# Other tests run these.
ELSEWHERE = ("README.md", "docs/how-to/trackers.md")
SHORTER = {
    '"cnn", data="fashion_mnist", num_epochs=1': '"softmax:smoke", num_steps=2',
    '"mlp:smoke", "runs/arrays"': '"softmax:smoke", "runs/arrays"',
    '"cnn", "runs/p", seeds=range(8)': '"softmax:smoke", "runs/p", seeds=range(2)',
    '"mlp", "runs/q", seeds=(3, 5, 9)': '"softmax:smoke", "runs/q", seeds=(3,)',
    "[1e-3, 2e-3, 4e-3]": "[1e-3]",
    '"cnn:fast", "runs/labels"': '"softmax:smoke", "runs/labels", folds=2',
}


@pytest.fixture
def place(finished_run, tmp_path, monkeypatch):
    """A directory with the files that the documentation names."""
    for name in ("a", "b", "robust"):
        shutil.copytree(finished_run[0], tmp_path / "runs" / name)
    for name in ("configs", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("my"):
            del sys.modules[name]


def write_files(page):
    """Writes the files of a page, and yields its other blocks."""
    for name, code in BLOCK.findall(PAGES[page]):
        if name:
            with open(name, "w", encoding="utf-8") as file:
                file.write(code)
        else:
            yield code


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.slow] if page != SHORT else [])
        for page, text in PAGES.items()
        if BLOCK.search(text) and page not in ELSEWHERE
    ],
)
def test_the_code_of_a_page_runs(page, place, monkeypatch):
    # The tests of the report draw it.
    report = mock.create_autospec(flaxmnist.SavedRun.report)
    monkeypatch.setattr(flaxmnist.SavedRun, "report", report)
    monkeypatch.setattr(finish, "_report", lambda *_: None)
    values = {}
    for code in write_files(page):
        for long, short in SHORTER.items():
            code = code.replace(long, short)
        exec(code, values)
    for file in place.glob("my*.py"):
        importlib.import_module(file.stem)


def commands(page):
    """Yields the commands of a page, each as its name and its arguments."""
    for language, block in FENCED.findall(PAGES[page]):
        if language not in SHELLS:
            continue
        for line in block.replace("\\\n", " ").splitlines():
            if found := COMMAND.fullmatch(line.strip()):
                arguments = shlex.split(found[2], comments=True)
                yield found[1] or "train", arguments


@pytest.mark.parametrize("page", PAGES)
def test_no_command_of_a_page_is_overlooked(page):
    names = "|".join(COMMANDS)
    start = rf"^(?:\$ )?(?:flaxmnist (?:{names})|python -m flaxmnist\.main) "
    assert len([*commands(page)]) == len(re.findall(start, PAGES[page], re.M))


class AcceptedError(Exception):
    """The flags of a command were accepted."""


def parsed(*args, **kwargs):
    raise AcceptedError


@pytest.mark.parametrize("page", [page for page in PAGES if [*commands(page)]])
def test_the_commands_of_a_page_accept_their_flags(page, place, monkeypatch):
    [*write_files(page)]
    for name in ("c", "p"):
        shutil.copytree("runs/a", f"runs/{name}")
    monkeypatch.setattr(loop, "train_and_evaluate", parsed)
    monkeypatch.setattr(sanity, "dry_run", parsed)
    monkeypatch.setattr(train, "train_members", parsed)
    for name, arguments in commands(page):
        trains = name == "train"
        monkeypatch.setattr(
            command, "start_jax", (lambda *args, **_: None) if trains else parsed
        )
        # Directories and seeds that only the reader has.
        arguments = [
            re.sub(r"\bDIR(_OR_FILE)?\b|\$seed", "0", each) for each in arguments
        ]
        with pytest.raises(AcceptedError):
            importlib.import_module(f"flaxmnist.cli.{name}").run(arguments)


def test_every_public_name_is_in_the_reference():
    pages = ROOT / "docs" / "reference" / "api"
    top = (pages / "flaxmnist.md").read_text(encoding="utf-8")
    for name in flaxmnist.__all__:
        if (pages / f"{name}.md").exists():
            assert (
                f"automodule:: flaxmnist.{name}" in (pages / f"{name}.md").read_text()
            )
        else:
            assert re.search(rf":: {name}(\(\))?$|`{name}`", top, re.M), name
