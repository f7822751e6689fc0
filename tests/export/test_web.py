"""The exported page in a real browser: it predicts as Python does, from one file."""

import base64
import io

import jax
import numpy as np
import pytest
from PIL import Image

from flaxmnist import config as configs
from flaxmnist.core import models
from flaxmnist.core.calibration import energy
from flaxmnist.core.state import create_state
from flaxmnist.core.steps import predict_step
from flaxmnist.errors import UserError
from flaxmnist.export import web
from flaxmnist.export.card import Card
from flaxmnist.inference.saved_run import open_run
from flaxmnist.rundir.description import DatasetInfo
from flaxmnist.training import loop

# Strokes of each digit, in a square of side 1.
STROKES = {
    0: [(0.5, 0.1), (0.25, 0.3), (0.25, 0.7), (0.5, 0.9), (0.75, 0.7), (0.75, 0.3)],
    1: [(0.35, 0.25), (0.55, 0.1), (0.55, 0.9)],
    2: [(0.25, 0.3), (0.5, 0.1), (0.75, 0.3), (0.25, 0.9), (0.8, 0.9)],
    3: [(0.25, 0.15), (0.7, 0.2), (0.45, 0.45), (0.75, 0.7), (0.5, 0.9), (0.25, 0.8)],
    4: [(0.6, 0.9), (0.6, 0.1), (0.2, 0.65), (0.8, 0.65)],
    5: [(0.7, 0.1), (0.3, 0.1), (0.28, 0.45), (0.6, 0.4), (0.75, 0.65), (0.3, 0.9)],
    6: [(0.65, 0.1), (0.3, 0.5), (0.35, 0.85), (0.7, 0.8), (0.6, 0.55), (0.32, 0.7)],
    7: [(0.25, 0.1), (0.75, 0.1), (0.45, 0.9)],
    8: [(0.5, 0.5), (0.3, 0.3), (0.5, 0.1), (0.7, 0.3), (0.3, 0.75), (0.6, 0.9)],
    9: [(0.7, 0.3), (0.5, 0.1), (0.3, 0.3), (0.5, 0.5), (0.7, 0.3), (0.65, 0.9)],
}
# Draws a line, and returns the picture with what the page computes of it.
DRAW = """
const [points, width] = arguments;
picture = null; strokes = [];
paint();
pen.lineWidth = width;
pen.beginPath();
for (const point of points) pen.lineTo(...point);
pen.stroke();
const before = performance.now();
const { bytes } = prepare(grayOf(pen.getImageData(0, 0, sheet.width, sheet.height)));
const found = bytes && predict(networks, bytes, shape, calibration.temperature);
const seconds = (performance.now() - before) / 1000;
return [sheet.toDataURL(), bytes && [...bytes], found && found.probabilities, seconds];
"""


def drawing(digit, rng, side=400):
    """Returns points and the width of the pen of a digit, somewhere on the sheet."""
    size = rng.uniform(0.4, 0.9) * side
    angle = rng.normal(0, 0.12)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = np.array(STROKES[digit]) + rng.normal(0, 0.02, (len(STROKES[digit]), 2))
    points = (points - 0.5) @ turn + 0.5
    corner = rng.uniform(0.2, 0.8, 2) * (side - size)
    return (corner + size * points).tolist(), rng.uniform(8, 20)


def card_of(state, names=("a", "b", "</script>", "0")):
    dataset = DatasetInfo(
        "mine", "arrays", {}, "", None, state.image_shape, tuple(names)
    )
    return Card("web", "m", "M", {}, 0, 1, "", True, None, dataset, None, {}, "")


def errors(browser):
    return [entry["message"] for entry in browser.get_log("browser")]


def open_page(browser, folder):
    browser.get((folder / "index.html").as_uri())
    assert errors(browser) == []


PREDICT = """
const [images, shape] = arguments;
return images.map((image) => {
  const { temperature } = calibration;
  const found = predict(networks, Uint8Array.from(image), shape, temperature);
  return [found.probabilities, found.explain(), found.energy];
});
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        models.SoftmaxRegression(num_classes=4),
        models.MLP(
            hidden=(9, 7), activation="softplus", batch_norm=True, num_classes=4
        ),
        models.CNN(
            features=(3,), hidden=(6,), activation="tanh", strides=(1, 2),
            kernel_size=(3, 4), padding="VALID", num_classes=4,
        ),
        models.CNN(features=(3,), hidden=(), pool="average", num_classes=4),
        models.ConvNet(layers="4C5S2V-MP3-R-BN-3C3-AP2-SE-D-5N-BN-6N", num_classes=4),
        models.ConvNet(layers="4C3-MP2-R-AP", num_classes=4),
    ],
    ids=lambda model: str(getattr(model, "layers", type(model).__name__)),
)  # fmt: skip
@pytest.mark.parametrize("shape", [(28, 28, 1), (13, 17, 3)], ids=str)
def test_every_layer_and_its_gradient(model, shape, browser, tmp_path):
    import optax

    state = create_state(model, optax.identity(), 1, image_shape=shape)
    rng = np.random.default_rng(0)
    state = state.replace(
        **jax.tree.map(
            lambda leaf: leaf + 0.1 * rng.random(leaf.shape, np.float32),
            {"params": state.params, "model_state": state.model_state},
        )
    )
    web.write(state, tmp_path, card_of(state))
    open_page(browser, tmp_path)
    images = (256 * rng.random((6, *shape)) ** 2).astype(np.uint8)
    given = images.reshape(len(images), -1).tolist()
    found = browser.execute_script(PREDICT, given, list(shape))
    wanted = predict_step(state, images)["probabilities"]
    np.testing.assert_allclose([row[0] for row in found], wanted, atol=1e-4)

    def top(images):
        # The page explains the logit, weighted by its probability.
        outputs = predict_step(state, images)
        return (outputs["logits"] * jax.lax.stop_gradient(outputs["probabilities"]))[
            jax.numpy.arange(len(given)), outputs["classes"]
        ].sum()

    grads = abs(jax.grad(top)(images.astype(np.float32) / 255)).max(axis=-1)
    np.testing.assert_allclose(
        [row[1] for row in found], grads.reshape(len(given), -1), rtol=1e-3, atol=1e-5
    )


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The page of a small network that knows digits, and its run."""
    folder = tmp_path_factory.mktemp("digits")
    config = configs.make_config(
        num_epochs=6,
        eval_every="6 epochs",
        model={"name": "cnn", "features": (4, 8), "hidden": (32,)},
        optimizer={"learning_rate": 3e-3, "schedule": "cosine"},
        data={"source": "bundled"},
        mesh={"data": 1},
        report=False,
    )
    loop.train_and_evaluate(config, folder)
    run = open_run(folder)
    return run, run.export("web")


@pytest.mark.slow
def test_images_and_drawings_have_the_probabilities_of_python(digits, browser):
    run, folder = digits
    open_page(browser, folder)
    images = run.dataset.test.images[:300]
    given = images.reshape(len(images), -1).tolist()
    found = browser.execute_script(PREDICT, given, [28, 28, 1])
    logits = np.asarray(predict_step(run.state, images)["logits"])
    assert run.calibration.temperature != 1
    wanted = run.calibration.probabilities(logits)
    np.testing.assert_allclose([row[0] for row in found], wanted, atol=1e-3)
    np.testing.assert_allclose([row[2] for row in found], energy(logits), rtol=1e-3)

    rng = np.random.default_rng(0)
    seconds, right, same = [], 0, 0
    for index in range(300):
        path, width = drawing(index % 10, rng)
        url, image, shares, passed = browser.execute_script(DRAW, path, width)
        picture = base64.b64decode(url.partition(",")[2])
        (prediction,) = run.predict(picture)
        seen = prediction.prepared.image.ravel().astype(int)
        given = np.array(image, np.uint8).reshape(1, 28, 28)
        logits = np.asarray(predict_step(run.state, given)["logits"])
        (wanted,) = run.calibration.probabilities(logits)
        np.testing.assert_allclose(shares, wanted, atol=1e-3)
        # The browser's resampling rounds some pixels in another way.
        assert abs(seen - image).max() <= 8
        if (seen == image).all():
            np.testing.assert_allclose(shares, prediction.probabilities, atol=1e-3)
            same += 1
        right += prediction.digit == index % 10
        seconds.append(passed)
    assert right > 200
    assert same > 280
    print(f"{1000 * np.median(seconds):.0f} ms a drawing")
    assert errors(browser) == []


@pytest.mark.slow
def test_several_drawn_digits_are_read_from_left_to_right(digits, browser):
    run, folder = digits
    open_page(browser, folder)
    seven = [[[300, 100], [370, 100], [330, 300]]]
    four = [[[180, 300], [180, 100]], [[170, 100], [110, 220], [210, 220]]]
    one = [[[60, 100], [60, 300]]]
    show = "strokes = arguments[0]; update(); return find('answer').textContent"
    read = browser.execute_script(show, [*seven, *four, *one])
    wanted = ""
    for strokes in (one, four, seven):
        browser.execute_script(show, strokes)
        url = browser.execute_script("return sheet.toDataURL()")
        (prediction,) = run.predict(base64.b64decode(url.partition(",")[2]))
        wanted += prediction.label
    assert read == wanted
    # A tap, and a stroke that another one nearly touches, are parts of a digit.
    count = "strokes = arguments[0]; return divided().length"
    assert browser.execute_script(count, [[[350, 350]], *seven]) == 1
    open_four = [[[100, 100], [60, 220], [160, 220]], [[185, 90], [185, 300]]]
    assert browser.execute_script(count, open_four) == 1
    assert browser.execute_script(count, [*open_four, *seven]) == 2
    assert browser.execute_script(count, [[[50, 50]], [[300, 300]]]) > 0
    assert errors(browser) == []


@pytest.mark.slow
def test_a_finger_draws_and_pictures_are_chosen(digits, browser, tmp_path):
    run, folder = digits
    open_page(browser, folder)
    path, _ = drawing(7, np.random.default_rng(3))
    box = browser.execute_script("return sheet.getBoundingClientRect()")
    scale = box["width"] / 400
    for index, (x, y) in enumerate(path):
        point = {"x": box["x"] + scale * x, "y": box["y"] + scale * y}
        event = {"type": "touchMove" if index else "touchStart", "touchPoints": [point]}
        browser.execute_cdp_cmd("Input.dispatchTouchEvent", event)
    end = {"type": "touchEnd", "touchPoints": []}
    browser.execute_cdp_cmd("Input.dispatchTouchEvent", end)
    # With a slow finger, the text may be of a part of the digit.
    browser.execute_script("find('spoken').textContent = ''; update()")
    text = wait_for(browser, "return find('spoken').textContent")
    url = browser.execute_script("return sheet.toDataURL()")
    (prediction,) = run.predict(base64.b64decode(url.partition(",")[2]))
    assert text.startswith(f"Prediction: {prediction.digit},")
    assert browser.execute_script(
        "return find('mattering').getContext('2d').getImageData(0, 0, 28, 28)"
        ".data.filter((each, at) => at % 4 === 0).some((each) => each === 255)"
    )
    notes = """
    [calibration.energy_limit, calibration.sure] = arguments;
    update();
    return find('notes').textContent;
    """
    assert browser.execute_script(notes, -1e9, 0) == "not a digit?"
    assert browser.execute_script(notes, 1e9, 1.1) == "low confidence"
    assert browser.execute_script(notes, None, 0) == ""
    browser.execute_script("find('clear').click()")
    assert browser.execute_script("return find('answer').textContent") == "–"
    # Light on dark, with transparent paper.
    gray = np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))
    ink = 255 - gray[..., 0]
    light = np.stack([np.full_like(ink, 255)] * 3 + [ink], axis=-1)
    Image.fromarray(light).save(tmp_path / "light.png")
    browser.find_element("id", "file").send_keys(str(tmp_path / "light.png"))
    assert wait_for(browser, "return find('spoken').textContent") == text
    (tmp_path / "broken.png").write_bytes(b"no picture")
    browser.find_element("id", "file").send_keys(str(tmp_path / "broken.png"))
    note = wait_for(browser, "return find('notes').textContent")
    assert note == "broken.png: this browser cannot read the picture"


def wait_for(browser, script):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 30).until(lambda _: browser.execute_script(script))


@pytest.mark.slow
def test_a_picture_of_another_shape_is_scaled(browser, tmp_path):
    import optax

    state = create_state(
        models.MLP(hidden=(5,), num_classes=4), optax.identity(), 0,
        image_shape=(12, 10, 3),
    )  # fmt: skip
    web.write(state, tmp_path, card_of(state))
    open_page(browser, tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (12, 10, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "own.png")
    browser.find_element("id", "file").send_keys(str(tmp_path / "own.png"))
    wait_for(browser, "return find('spoken').textContent")
    bars = browser.execute_script("return find('bars').innerText").split("\n")
    shares = predict_step(state, pixels[None])["probabilities"][0]
    assert [name for name in bars if name in ("a", "b", "</script>", "0")] == [
        "a", "b", "</script>", "0",
    ]  # fmt: skip
    found = [float(text[:-2]) for text in bars if text.endswith(" %")]
    np.testing.assert_allclose(found, 100 * np.asarray(shares), atol=0.51)


@pytest.mark.slow
def test_a_large_image_is_explained_where_arguments_are_limited(browser, tmp_path):
    import optax

    shape = (256, 256, 1)
    model = models.SoftmaxRegression(num_classes=4)
    state = create_state(model, optax.identity(), 0, image_shape=shape)
    web.write(state, tmp_path, card_of(state))
    open_page(browser, tmp_path)
    # As in Safari.
    browser.execute_script("""
    const { max } = Math;
    Math.max = (...all) => {
      if (all.length > 65536) throw new RangeError("too many arguments");
      return max(...all);
    };
    """)
    Image.new("L", shape[:2], 200).save(tmp_path / "own.png")
    browser.find_element("id", "file").send_keys(str(tmp_path / "own.png"))
    wait_for(browser, "return find('spoken').textContent")
    assert errors(browser) == []


def test_a_model_that_the_page_does_not_compute_is_refused(make_state, tmp_path):
    from flax import linen as nn

    class Own(nn.Module):
        @nn.compact
        def __call__(self, images, *, train):
            return nn.Dense(10)(images.reshape(len(images), -1) / 255)

    state = make_state(Own())
    with pytest.raises(UserError, match="not Own; use --format stablehlo or onnx"):
        web.write(state, tmp_path, card_of(state))
    state = make_state(models.ConvNet(layers="2C3-AP", crop=20))
    with pytest.raises(
        UserError, match=r"does not support model\.crop=20; use --format"
    ):
        web.write(state, tmp_path, card_of(state))
