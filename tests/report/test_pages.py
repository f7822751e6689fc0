"""The report and the comparison in a browser: accessible, on any screen, without error.

axe-core is not part of the project: `npm install --no-save axe-core` puts it where the
test looks for it.
"""

import pytest
from helpers import ROOT, tiny_config

from flaxmnist.cli import report
from flaxmnist.rundir.varying import vary
from flaxmnist.training import loop
from flaxmnist.training.population import train_members

AXE = ROOT / "node_modules/axe-core/axe.min.js"


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The reports of a run that makes mistakes and of a population; a comparison."""
    folder = tmp_path_factory.mktemp("pages")
    for name, steps in (("run", 20), ("other", 40)):
        config = tiny_config(report=name == "run", num_steps=steps)
        loop.train_and_evaluate(config, folder / name)
    page = folder / "c.html"
    flags = [str(folder / "run"), str(folder / "other"), f"--output={page}"]
    assert report.main(flags) == 0
    config = tiny_config(report=True, num_steps=20)
    members = vary(config, [0, 1], {"optimizer.learning_rate": [1e-3, 1e-2]})
    train_members(config, folder / "population", members)
    return {
        "report": folder / "run/report.html",
        "comparison": page,
        "population": folder / "population/report.html",
    }


@pytest.fixture
def show(browser, pages):
    """Shows a page on a screen of some width; returns what runs JavaScript in it."""

    def show(name, width=1280, scheme="light"):
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
        )
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        browser.get(pages[name].as_uri())
        return browser.execute_script

    browser.get_log("browser")
    yield show
    assert browser.get_log("browser") == []
    for what in ("clearDeviceMetricsOverride", "setEmulatedMedia"):
        browser.execute_cdp_cmd(f"Emulation.{what}", {})


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["report", "comparison", "population"])
def test_axe_finds_nothing(name, scheme, show, browser):
    if not AXE.exists():
        pytest.skip("needs axe-core: npm install --no-save axe-core")
    run = show(name, scheme=scheme)
    run("for (const one of document.querySelectorAll('details')) one.open = true;")
    run(AXE.read_text())
    browser.set_script_timeout(60)
    found = browser.execute_async_script("axe.run(document).then(arguments[0]);")
    assert len(found["passes"]) > 20
    assert [(one["id"], one["nodes"][0]["html"]) for one in found["violations"]] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["report", "comparison", "population"])
def test_charts_fit_a_phone_and_follow_the_keyboard(name, show):
    run = show(name, width=390)
    charts = run("return document.querySelectorAll('.charts canvas').length;")
    assert charts == 6
    assert run("return document.documentElement.scrollWidth;") <= 390
    run(
        "document.querySelector('.plot').dispatchEvent("
        "new KeyboardEvent('keydown', {key: 'ArrowRight'}));"
    )
    said = run("return document.querySelector('#charts [role=status]').textContent;")
    assert said.startswith("step 10; ")
    assert "train" in said
    run(
        "const axis = document.querySelector('#charts select');"
        "axis.value = 'epoch'; axis.dispatchEvent(new Event('change'));"
    )
    label = run("return document.querySelector('.plot').getAttribute('aria-label');")
    assert label == "Accuracy, % against epoch"


@pytest.mark.slow
def test_mistakes_are_filtered(show):
    run = show("report")
    count = "return document.querySelectorAll('#mistakes figure:not([hidden])').length;"
    everything = run(count)
    label, prediction, pair = run(
        "const show = document.querySelector('button[data-label]'); show.click();"
        "return [show.dataset.label, show.dataset.prediction,"
        " parseInt(show.parentElement.textContent)];"
    )
    assert 0 < run(count) == pair < everything
    first = run(
        "return document.querySelector('#mistakes figure:not([hidden])').textContent;"
    )
    assert first.startswith(f"{label} as {prediction}, ")
    assert run("return shown.textContent;") == f"{pair} of {everything}"
