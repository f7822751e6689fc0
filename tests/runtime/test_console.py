"""What a terminal shows: whole words, figures that fit, plain lines if it is dumb."""

import io
import re

import pytest

from flaxmnist.runtime import console as module


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """Makes a console on a terminal, and returns both."""

    def make(columns=80, kind="xterm"):
        monkeypatch.setenv("TERM", kind)
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.delenv("NO_COLOR", raising=False)
        monkeypatch.setattr("sys.stdout", Terminal())
        return module.Console(), module.sys.stdout

    return make


def test_lines_break_between_words(terminal):
    console, shown = terminal()
    path = "/a/" + "long/" * 20
    console.line("one two three " * 10 + f"\n{path} is kept\n\n  row   1")
    first, *rest = shown.getvalue().splitlines()
    assert len(first) <= 80
    assert first.endswith(("one", "two", "three"))
    assert rest[-4:] == [path, "  is kept", "", "  row   1"]
    console.line(json := "{" + "1, " * 100 + "}", wrap=False)
    assert shown.getvalue().splitlines()[-1] == json


def progress(console):
    with console.training(0, 1716) as update:
        figures = ("97.1%", "ETA 0:00:10", "12,345 images/s")
        update(1200, 1.3, 0.123, figures)
        if console._bars:
            console._bars.refresh()
        console.line_without_bar("step 1200")


@pytest.mark.parametrize(
    ("columns", "figures"),
    [
        (80, "loss 0.123 97.1% ETA 0:00:10 12,345 images/s ▁"),
        (70, "loss 0.123 97.1% ETA 0:00:10 12,345 images/s"),
        (58, "loss 0.123 97.1% ETA 0:00:10"),
        (45, "loss 0.123 97.1%"),
    ],
)
def test_the_bar_keeps_the_figures_that_fit(terminal, columns, figures):
    console, shown = terminal(columns)
    progress(console)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.getvalue())
    assert re.search(r"compiling … +\S* +0/1716", text)
    (last,) = {line.rstrip() for line in re.split("[\r\n]", text) if "epoch" in line}
    assert re.fullmatch(rf"epoch 1\.3 \S+ +1200/1716 {re.escape(figures)}", last)
    assert len(last) <= columns
    assert "step 1200" not in text


def test_the_bar_draws_few_losses_evenly(terminal, monkeypatch):
    drawn = []
    monkeypatch.setattr(module, "_MAX_LOSSES", 8)
    monkeypatch.setattr(
        module, "sparkline", lambda losses: drawn.append([*losses]) or ""
    )
    for kind in ("xterm", "dumb"):
        console, _ = terminal(kind=kind)
        with console.training(0, 100) as update:
            for step in range(33):
                update(step, 1.0, step, ())
    assert drawn[6] == [0, 1, 2, 3, 4, 5, 6]
    assert drawn[32] == [0, 8, 16, 24, 32]
    assert len(drawn) == 33  # A dumb terminal shows no bar.


def test_a_dumb_terminal_shows_plain_lines(terminal):
    console, shown = terminal(kind="dumb")
    with console.compiling(1716):
        pass
    progress(console)
    assert shown.getvalue() == "step 1200\n"
