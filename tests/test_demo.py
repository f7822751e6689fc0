"""The page to draw on, in a real browser: a seven drawn by a mouse is seen as one."""

import io
import itertools
import re
import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest

from flaxmnist import config as configs
from flaxmnist import demo, train
from flaxmnist.restore import load_state


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run that knows digits: a small network on the bundled images."""
    folder = tmp_path_factory.mktemp("digits")
    config = configs.make_config(
        num_epochs=10,
        eval_every="10 epochs",
        model={"name": "mlp", "hidden": (128,)},
        optimizer={"learning_rate": 3e-3, "schedule": "cosine"},
        data={"source": "bundled"},
        mesh={"data": 1},
        report=False,
    )
    assert train.train_and_evaluate(config, folder)["test"]["accuracy"] > 0.9
    return folder


@pytest.fixture(scope="module")
def page(workdir):
    """The address of the page, served by a process as a user would start it."""
    pytest.importorskip("gradio", reason="needs 'flaxmnist[demo]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "flaxmnist.demo", f"--workdir={workdir}"]
    process = subprocess.Popen(
        [*command, f"--port={port}", "--platform=cpu"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    for _ in range(600):
        assert process.poll() is None, process.communicate()[0]
        try:
            urllib.request.urlopen(address).close()
            break
        except OSError:
            time.sleep(0.1)
    yield address
    process.terminate()
    process.wait()


SEVEN = [(0.28, 0.25), (0.72, 0.25), (0.45, 0.8)]


def path_on(browser, points):
    """Returns a path through `points`, shares of the canvas, in the window."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    find = (By.CSS_SELECTOR, "canvas")
    WebDriverWait(browser, 30).until(lambda _: browser.find_elements(*find))
    box = browser.find_element(*find).rect
    shares = np.linspace(0, 1, 6)
    return [
        [box["x"] + x * box["width"], box["y"] + y * box["height"]]
        for (x0, y0), (x1, y1) in itertools.pairwise(points)
        for x, y in zip(x0 + shares * (x1 - x0), y0 + shares * (y1 - y0), strict=True)
    ]


REACHED = """
const canvas = document.querySelector("canvas"), box = canvas.getBoundingClientRect();
const shares = [...Array(20).keys()].map((i) => (i + 0.5) / 20);
const at = (x, y) =>
  document.elementFromPoint(box.x + x * box.width, box.y + y * box.height);
const points = shares.flatMap((x) => shares.map((y) => at(x, y) === canvas));
return points.filter(Boolean).length / points.length;
"""


def by_mouse(browser, path):
    for index, (x, y) in enumerate(path):
        kind = "mouseMoved" if index else "mousePressed"
        event = {"x": x, "y": y, "button": "left", "buttons": 1, "clickCount": 1}
        browser.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": kind} | event)
    browser.execute_cdp_cmd(
        "Input.dispatchMouseEvent", event | {"type": "mouseReleased", "buttons": 0}
    )


def by_finger(browser, path):
    for index, (x, y) in enumerate(path):
        kind = "touchMove" if index else "touchStart"
        points = {"type": kind, "touchPoints": [{"x": x, "y": y}]}
        browser.execute_cdp_cmd("Input.dispatchTouchEvent", points)
    points = {"type": "touchEnd", "touchPoints": []}
    browser.execute_cdp_cmd("Input.dispatchTouchEvent", points)


@pytest.mark.parametrize(
    ("width", "draw"), [(1280, by_mouse), (768, by_mouse), (360, by_finger)]
)
def test_a_seven_that_is_drawn_is_recognised(page, browser, width, draw):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(page)
    draw(browser, path_on(browser, SEVEN))
    # Nothing lies over the canvas.
    assert browser.execute_script(REACHED) == 1

    def text():
        return browser.find_element(By.TAG_NAME, "body").text

    wait = WebDriverWait(browser, 30)
    wait.until(lambda _: re.search(r"what it is\s+7\s+7\s+\d+%", text()))
    overflow = "return document.documentElement.scrollWidth - window.innerWidth"
    assert browser.execute_script(overflow) <= 0
    pictures = browser.find_elements(By.CSS_SELECTOR, "img[src*='/file=']")
    loaded = "return arguments[0].naturalWidth"
    assert [browser.execute_script(loaded, one) for one in pictures] == [224, 224]

    browser.find_element(By.TAG_NAME, "button").click()
    wait.until(lambda _: not re.search(r"\d%", text()))
    assert browser.get_log("browser") == []


def test_what_is_shown_is_what_the_network_sees(workdir):
    state = load_state(workdir)
    canvas = np.full((320, 320, 3), 255, np.uint8)
    canvas[60:90, 90:240] = canvas[60:260, 200:230] = 0
    probabilities, seen, looked_at = demo.classify(state, canvas)
    assert max(probabilities, key=probabilities.get) == "7"
    np.testing.assert_allclose(sum(probabilities.values()), 1, rtol=1e-5)
    for picture in (seen, looked_at):
        assert picture.size == (224, 224)
        assert np.asarray(picture).max() == 255
        picture.save(io.BytesIO(), format="PNG")


def test_an_empty_canvas_is_nothing(workdir):
    white = np.full((280, 280, 3), 255, np.uint8)
    probabilities, seen, _ = demo.classify(load_state(workdir), white)
    assert probabilities == {}
    assert not np.asarray(seen).any()


def test_a_mistake_is_told(tmp_path, monkeypatch, capsys):
    assert demo.main([f"--workdir={tmp_path}"]) == 2
    assert "train first" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert demo.main([f"--workdir={tmp_path}"]) == 2
    assert "pip install 'flaxmnist[demo]'" in capsys.readouterr().err
