"""The page to draw on, in a real browser: a seven drawn by a mouse is seen as one."""

import io
import itertools
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from helpers import ROOT
from PIL import Image

from flaxmnist import config as configs
from flaxmnist.cli import demo
from flaxmnist.inference.saved_run import open_run
from flaxmnist.training import loop


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
    assert loop.train_and_evaluate(config, folder).test.accuracy > 0.9
    return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The directory where the page's process keeps files, if it keeps any."""
    return tmp_path_factory.mktemp("written")


@pytest.fixture(scope="module")
def page(workdir, written):
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
        cwd=written,
        env=os.environ | {"TMPDIR": str(written), "PYTHONPATH": str(ROOT)},
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
    pictures = browser.find_elements(By.CSS_SELECTOR, "img[src^='data:image/png']")
    loaded = "return arguments[0].naturalWidth"
    assert [browser.execute_script(loaded, one) for one in pictures] == [224, 224]

    browser.find_element(By.TAG_NAME, "button").click()
    wait.until(lambda _: not re.search(r"\d%", text()))
    assert browser.get_log("browser") == []


def ask(page, path, content=None, **headers):
    """Returns the status and the headers of an answer."""
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        reply = urllib.request.urlopen(
            urllib.request.Request(page + path, content, headers)
        )
    except urllib.error.HTTPError as error:
        reply = error
    with reply:
        return reply.status, reply.headers


def test_only_the_page_itself_is_answered(page):
    host = page.removeprefix("http://")
    port = host.partition(":")[2]
    for named, status in (
        (host, 200),
        (f"localhost:{port}", 200),
        (f"evil.example:{port}", 421),
        ("[", 421),
        ("", 421),
    ):
        assert ask(page, "/", Host=named)[0] == status
        assert ask(page, "/config", Host=named)[0] == status
    for origin, status in (
        (page, 200),
        ("http://evil.example", 403),
        (f"http://evil.example:{port}", 403),
        ("null", 403),
    ):
        found, headers = ask(page, "/config", Origin=origin)
        assert found == status
        assert (headers["Access-Control-Allow-Origin"] == page) == (status == 200)


def test_large_requests_and_uploads_are_refused(page, written):
    before = sorted(written.rglob("*"))
    form = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'
    form += b"0" * 1_000 + b"\r\n--x--\r\n"
    kind = {"Content_Type": "multipart/form-data; boundary=x"}
    assert ask(page, "/gradio_api/upload", form, **kind)[0] == 403
    join, kind = "/gradio_api/queue/join", {"Content_Type": "application/json"}
    assert ask(page, join, b" " * (1 << 20), **kind)[0] == 422  # It is read: no JSON.
    assert ask(page, join, b" " * (1 << 20) + b" ", **kind)[0] == 413
    chunks = iter([b" " * 500_000] * 3)  # Without a length that is announced.
    assert ask(page, join, chunks, **kind)[0] == 413
    assert sorted(written.rglob("*")) == before


def look(page, picture, session):
    """Returns the events of a prediction, as the page asks for it."""
    body = {"data": [picture], "fn_index": 0, "session_hash": session}
    kind = {"Content_Type": "application/json"}
    path = "/gradio_api/queue/join"
    assert ask(page, path, json.dumps(body).encode(), **kind)[0] == 200
    address = f"{page}/gradio_api/queue/data?session_hash={session}"
    with urllib.request.urlopen(address) as reply:
        return reply.read().decode()


def test_pictures_of_many_clients_leave_no_files(page, written):
    canvas = np.full((280, 280), 255, np.uint8)
    canvas[60:90, 90:240] = canvas[60:260, 200:230] = 0
    seven = demo._data_url(Image.fromarray(canvas))
    before = sorted(written.rglob("*"))
    with ThreadPoolExecutor(20) as pool:
        sessions = [f"client{index}" for index in range(20)]
        found = list(pool.map(lambda session: look(page, seven, session), sessions))
    for events in found:
        assert '"label":"7"' in events.replace(" ", "")
        assert events.count("data:image/png;base64,") == 2
    for wrong in (
        "no picture",
        "data:image/png;base64,AAAA",
        None,
        7,
        {"path": "/etc"},
    ):
        assert "expected a PNG as a data URL" in look(page, wrong, "wrong")
    assert sorted(written.rglob("*")) == before


def test_what_is_shown_is_what_the_network_sees(workdir):
    state = open_run(workdir).state
    canvas = np.full((320, 320, 3), 255, np.uint8)
    canvas[60:90, 90:240] = canvas[60:260, 200:230] = 0
    probabilities, seen, looked_at = demo.classify(state, "0123456789", canvas)
    assert max(probabilities, key=probabilities.get) == "7"
    np.testing.assert_allclose(sum(probabilities.values()), 1, rtol=1e-5)
    for picture in (seen, looked_at):
        assert picture.size == (224, 224)
        assert np.asarray(picture).max() == 255
        picture.save(io.BytesIO(), format="PNG")


def test_an_empty_canvas_is_nothing(workdir):
    white = np.full((280, 280, 3), 255, np.uint8)
    state = open_run(workdir).state
    probabilities, seen, _ = demo.classify(state, "0123456789", white)
    assert probabilities == {}
    assert not np.asarray(seen).any()


def test_a_mistake_is_told(tmp_path, monkeypatch, capsys):
    assert demo.main([f"--workdir={tmp_path}"]) == 2
    assert "contains no run: config.json is missing" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert demo.main([f"--workdir={tmp_path}"]) == 2
    assert "pip install 'flaxmnist[demo]'" in capsys.readouterr().err
