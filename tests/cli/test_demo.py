"""The page to draw on, in a real browser: a seven drawn by a mouse is seen as one."""

import base64
import io
import itertools
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from helpers import ROOT, free_port
from PIL import Image

from flaxmnist import config as configs
from flaxmnist.cli import demo
from flaxmnist.inference.saved_run import open_run
from flaxmnist.runtime.page_server import MAX_REQUEST_BYTES
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
    port = free_port()
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


def answer_on(browser):
    """Returns the label and the warnings that the page shows."""
    from selenium.webdriver.common.by import By

    notes = browser.find_elements(By.CSS_SELECTOR, ".notes li")
    label = browser.find_element(By.CSS_SELECTOR, ".answer b").text
    return label, [note.text for note in notes]


def shows(browser, condition):
    """Waits for an answer with a label and warnings."""
    from selenium.common.exceptions import StaleElementReferenceException
    from selenium.webdriver.support.ui import WebDriverWait

    wait = WebDriverWait(
        browser, 30, ignored_exceptions=[StaleElementReferenceException]
    )
    wait.until(lambda _: condition(*answer_on(browser)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "draw"), [(1280, by_mouse), (768, by_mouse), (360, by_finger)]
)
def test_a_seven_that_is_drawn_is_recognised(page, browser, width, draw):
    from selenium.webdriver.common.by import By

    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(page)
    assert "of 500 test images are right" in browser.page_source
    draw(browser, path_on(browser, SEVEN))
    # Nothing lies over the canvas.
    assert browser.execute_script(REACHED) == 1
    shows(browser, lambda label, _: label == "7")
    overflow = "return document.documentElement.scrollWidth - window.innerWidth"
    assert browser.execute_script(overflow) <= 0
    pictures = browser.find_elements(By.CSS_SELECTOR, "img[src^='data:image/png']")
    loaded = "return arguments[0].naturalWidth"
    assert [browser.execute_script(loaded, one) for one in pictures] == [28, 28]

    browser.find_element(By.ID, "clear").click()
    shows(browser, lambda label, warnings: (label, warnings) == ("–", []))
    assert browser.get_log("browser") == []


INK = """
const canvas = document.querySelector("canvas");
const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
return pixels.data.filter((value, at) => at % 4 === 0 && value < 128).length;
"""
GIVE = """
const [kind, content, name] = arguments, data = new DataTransfer();
const bytes = Uint8Array.from(atob(content), (character) => character.charCodeAt(0));
if (name) data.items.add(new File([bytes], name));
const event = kind === "drop"
  ? new DragEvent("drop", { dataTransfer: data, cancelable: true })
  : new ClipboardEvent("paste", { clipboardData: data });
document.dispatchEvent(event);
"""


@pytest.mark.slow
def test_pictures_dots_and_keys(page, browser, tmp_path):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    def press(*keys):
        browser.switch_to.active_element.send_keys(*keys)

    def give(kind, content, name):
        browser.execute_script(GIVE, kind, base64.b64encode(content).decode(), name)

    browser.get(page)
    by_mouse(browser, path_on(browser, SEVEN)[:1])  # A click.
    dot = browser.execute_script(INK)
    assert 26**2 / 2 < dot < 26**2
    press(Keys.CONTROL, "z")
    assert browser.execute_script(INK) == 0
    x, y = path_on(browser, SEVEN)[0]
    for button in ("right", "middle"):
        event = {"x": x, "y": y, "button": button, "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            command = "Input.dispatchMouseEvent"
            browser.execute_cdp_cmd(command, {"type": kind} | event)
    assert browser.execute_script(INK) == 0

    seven = (ROOT / "docs/samples/7.png").read_bytes()
    for kind in ("drop", "paste"):
        give(kind, seven, "7.png")
        shows(browser, lambda label, _: label == "7")
        press(Keys.DELETE)
        shows(browser, lambda label, _: label == "–")
    give("drop", sevens(2).read(), "77.png")
    shows(browser, lambda label, _: label.replace(" ", "") == "77")
    frames = browser.find_elements(By.CSS_SELECTOR, ".box")
    assert [frame.rect["width"] > 50 for frame in frames] == [True, True]
    give("paste", b"", "")
    shows(browser, lambda _, notes: notes == ["The clipboard contains no picture"])
    # The element that Tab reaches first, and the picture below the one that is undone.
    press(Keys.TAB)
    field = browser.switch_to.active_element
    assert field.accessible_name == "Choose a picture"
    field.send_keys(str(ROOT / "docs/samples/7.png"))
    shows(browser, lambda label, _: label == "7")
    (tmp_path / "broken.png").write_bytes(seven[:99])
    browser.find_element(By.ID, "file").send_keys(str(tmp_path / "broken.png"))
    shows(browser, lambda _, notes: "broken.png cannot be read" in " ".join(notes))
    browser.find_element(By.ID, "undo").click()
    shows(browser, lambda label, warnings: (label, warnings) == ("7", []))
    # This test itself reads the canvas more often than Chromium advises.
    assert all("readback" in entry["message"] for entry in browser.get_log("browser"))


def ask(page, path, content=None, **headers):
    """Returns the status and the body of an answer."""
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        reply = urllib.request.urlopen(
            urllib.request.Request(page + path, content, headers)
        )
    except urllib.error.HTTPError as error:
        reply = error
    with reply:
        return reply.status, reply.read()


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
        assert ask(page, "/predict", b"", Host=named)[0] == status
    for origin, status in (
        (page, 200),
        ("http://evil.example", 403),
        (f"http://evil.example:{port}", 403),
        ("null", 403),
    ):
        assert ask(page, "/", Origin=origin)[0] == status
        assert ask(page, "/predict", b"", Origin=origin)[0] == status


def test_large_and_other_requests_are_refused(page):
    assert ask(page, "/etc/passwd")[0] == ask(page, "/other", b"")[0] == 404
    too_long = str(MAX_REQUEST_BYTES + 1)
    for length, status in ((too_long, 413), ("-1", 411), ("x", 411)):
        assert ask(page, "/predict", b"", Content_Length=length)[0] == status


def sevens(count):
    """Returns a PNG file of sevens side by side."""
    canvas = np.full((280, 280), 255, np.uint8)
    canvas[60:90, 90:240] = canvas[60:260, 200:230] = 0
    file = io.BytesIO()
    Image.fromarray(np.hstack([canvas] * count)).save(file, "PNG")
    file.seek(0)
    return file


def test_pictures_of_many_clients_leave_no_files(page, written):
    before = sorted(written.rglob("*"))
    with ThreadPoolExecutor(20) as pool:
        bodies = [sevens(1).read()] * 20
        found = list(pool.map(lambda body: ask(page, "/predict", body), bodies))
    for status, body in found:
        values = json.loads(body)
        assert (status, values["text"]) == (200, "7")
        assert values["seen"].startswith("data:image/png;base64,")
    status, body = ask(page, "/predict?name=a%20b.png", b"no picture")
    (warning,) = json.loads(body)["warnings"]
    assert status == 200
    assert warning.startswith("a b.png cannot be read as a picture")
    assert sorted(written.rglob("*")) == before


def test_the_digits_of_a_number_have_boxes(workdir):
    values = demo.answer(open_run(workdir), sevens(3))
    assert values["text"].replace(" ", "") == "777"
    assert [label for label, _ in values["bars"]] == ["7"] * 3
    boxes = [one["box"] for one in values["boxes"]]
    expected = [
        [(90 + 280 * x) / 840, 60 / 280, (240 + 280 * x) / 840, 260 / 280]
        for x in range(3)
    ]
    np.testing.assert_allclose(boxes, expected, atol=0.02)


def test_the_page_of_an_ensemble_says_so(trained_population):
    assert "ensemble of 2 × cnn with " in demo.page(open_run(trained_population[0]))


def test_an_empty_drawing_has_no_label(workdir):
    file = io.BytesIO()
    Image.new("RGB", (280, 280), "white").save(file, "PNG")
    file.seek(0)
    values = demo.answer(open_run(workdir), file)
    assert "text" not in values
    assert values["warnings"]
    assert [share for _, share in values["bars"]] == [0] * 10


def test_a_mistake_is_told(workdir, tmp_path, capsys):
    assert demo.main([f"--workdir={tmp_path}"]) == 2
    assert "contains no run: config.json is missing" in capsys.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        for flag in (f"--port={port}", "--port=70000", "--host=nowhere.invalid"):
            assert demo.main([f"--workdir={workdir}", flag]) == 2
            err = capsys.readouterr().err
            assert "cannot listen" in err
            assert "Give another --host or --port" in err
