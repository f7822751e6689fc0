"""The examples run as they are, on data that needs no network."""

import runpy
import subprocess
import sys

from helpers import ROOT

MINIMAL = ROOT / "examples/minimal.py"


def test_the_minimal_example_learns_on_the_bundled_subset(monkeypatch, capsys):
    monkeypatch.setattr("flaxmnist.data.download.reachable", lambda url: False)
    result = runpy.run_path(str(MINIMAL))["main"](steps=60)
    output = capsys.readouterr().out
    assert "BUNDLED SUBSET" in output
    assert f"test accuracy {result['accuracy']:.2%} of 500 images" in output
    assert result["accuracy"] > 0.6


def test_the_minimal_example_is_one_page_and_describes_its_options():
    assert len(MINIMAL.read_text(encoding="utf-8").splitlines()) <= 80
    command = [sys.executable, MINIMAL, "--help"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "--steps" in text
    assert "--seed" in text
