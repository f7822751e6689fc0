"""The report of a run, what it is computed by, and how a browser shows it."""

import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from html import unescape

import flax.linen as nn
import numpy as np
import pytest
from helpers import lines, timeless, tiny_config

from flaxmnist import config as configs
from flaxmnist import data
from flaxmnist.cli import report, train
from flaxmnist.core import models
from flaxmnist.errors import UserError
from flaxmnist.inference.saved_run import open_run
from flaxmnist.report import charts, html, label_errors, plots, statistics, words
from flaxmnist.report.mistakes import Mistakes
from flaxmnist.rundir.description import DatasetInfo
from flaxmnist.rundir.history import History
from flaxmnist.training import loop


def config_of(seed):
    return tiny_config(report=True, seed=seed, optimizer={"learning_rate": 3e-3})


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """Two finished runs that differ in their seed and make mistakes, with reports."""
    folder = tmp_path_factory.mktemp("reported")
    for seed in (0, 1):
        loop.train_and_evaluate(config_of(seed), folder / f"seed{seed}")
    return folder


def test_a_run_ends_with_a_report_that_needs_nothing_else(reported):
    workdir = reported / "seed0"
    page = (workdir / "report.html").read_text()
    summary = json.loads((workdir / "summary.json").read_text())
    assert f"{summary['test']['accuracy']:.2%}" in page
    assert f"{summary['model']['parameters']:,}" in page
    assert summary["dataset"]["fingerprint"] in page
    for name in ("curves", "confusion", "calibration", "mistakes", "filters"):
        assert (workdir / "plots" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    wrong = round((1 - summary["test"]["accuracy"]) * summary["test"]["count"])
    assert page.count('alt="Test image') == wrong > 0
    assert "The images are synthetic" in page
    assert "flaxmnist predict warns" in page
    assert page.count("<main>") == page.count("</main>") == 1
    assert "<th></th>" not in page
    # Nothing is fetched, by whatever attribute.
    assert not re.search(r"""(src|href|url\()\s*=?["']?\s*(https?:|//)""", page)


class Embedding(nn.Module):
    """A model of one's own, none of whose layers has a kernel to draw."""

    dtype: object = None

    @nn.compact
    def __call__(self, images, *, train=False):
        rows = models.scale(images).reshape(-1, 28, 28)
        return nn.Dense(10, name="head")(rows.mean(axis=1))


@pytest.mark.slow
def test_a_model_of_ones_own_is_reported(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(models.MODELS, "embedding", Embedding)
    config = tiny_config(
        num_steps=2, report=True, model={"name": "embedding"}, summaries=("filters",)
    )
    loop.train_and_evaluate(config, tmp_path)
    assert capsys.readouterr().err == ""
    assert not (tmp_path / "plots" / "filters.png").exists()
    assert "--config.model.name=embedding" in (tmp_path / "report.html").read_text()


def test_the_command_in_a_report_gives_the_configuration_again():
    for spec in ("softmax", "mlp:mechanics", "cnn:deep"):
        config = configs.resolve(configs.load(spec))
        assert configs.flags_of(config) == [f"--config={spec}"]
    # The rate of `cnn`, of which another model's name would make the default.
    other = configs.override(
        configs.load("cnn"), [("model.name", "mlp"), ("model.dropout_rate", "0.4")]
    )
    decay = {"schedule": "polynomial_schedule", "schedule_power": 2.0}
    for config in (
        tiny_config(seed=3),
        tiny_config(optimizer=decay),
        tiny_config(optimizer={"name": "optimistic_adam"}),
        other,
    ):
        first, *changes = configs.flags_of(config)
        pairs = [flag.removeprefix("--config.").split("=", 1) for flag in changes]
        base = configs.load(first.removeprefix("--config="))
        assert configs.override(base, pairs) == config


def test_figures_in_the_table_of_curves_name_their_split():
    records = [
        {"step": 5, "epoch": 1.0, "split": split, "loss": loss, "top5": loss / 2}
        for split, loss in (("train", 4.0), ("validation", 2.0), ("test", 3.0))
    ]
    records[0]["learning_rate"] = 0.5
    names, ((step, row),) = charts.curve_table(records)
    assert step == 5
    assert dict(zip(names, row, strict=True)) == {
        "train loss": 4.0,
        "train top5": 2.0,
        "learning rate": 0.5,
        "validation loss": 2.0,
        "validation top5": 1.0,
        "test loss": 3.0,
        "test top5": 1.5,
    }


def command_of(page):
    (command,) = re.findall('<pre tabindex="0">(python.*?)</pre>', page)
    return shlex.split(unescape(command))[3:]


def test_the_command_names_data_and_virtual_devices(reported):
    summary = History.read(reported / "seed0").summary
    config = configs.override(
        configs.from_dict(summary.config), {"data.source": "auto", "mesh.data": -1}
    )
    summary = dataclasses.replace(
        summary,
        config=configs.as_dict(config),
        dataset=dataclasses.replace(summary.dataset, source="bundled"),
        devices=dataclasses.replace(summary.devices, platform="cpu", count=4),
    )
    args, overrides = train._parse(shlex.split(words.command(summary))[3:])
    assert args.num_cpu_devices == 4
    found = configs.override(configs.load(args.config), overrides)
    assert found == configs.override(config, {"data.source": "bundled"})
    given = dataclasses.replace(summary.dataset, source="arrays")
    assert words.command(dataclasses.replace(summary, dataset=given)) is None


@pytest.mark.slow
def test_the_command_in_a_report_repeats_the_run(tmp_path):
    flags = ["--config=mlp:smoke", "--config.data.source=synthetic"]
    flags += ["--config.num_steps=20", "--config.log_every=5", "--num_cpu_devices=2"]
    for name in ("run", "again"):
        program = [sys.executable, "-m", "flaxmnist.main", *flags]
        subprocess.run([*program, f"--workdir={tmp_path / name}"], check=True)
        found = command_of((tmp_path / name / "report.html").read_text())
        assert "--num_cpu_devices=2" in found
        flags = found
    first, again = (timeless(lines(tmp_path / name)) for name in ("run", "again"))
    assert first == again


def test_data_that_are_a_part_are_told():
    def said(name, source, test):
        counts = {"train": 4000, "validation": 500, "test": test}
        return words.banner(DatasetInfo(name, source, counts, ""))

    assert "4,000 of MNIST's 60,000 training images" in said("mnist", "bundled", 500)
    assert "12 of the 10,000 test images of kmnist" in said("kmnist", "idx", 12)
    assert said("mnist", "idx", 10_000) is None
    assert said("own", "csv", 12) is None


def wrong_outputs(count, classes=10):
    labels = np.arange(count) % classes
    predicted = (labels + 1) % classes
    probabilities = np.full((count, classes), 0.01)
    probabilities[np.arange(count), predicted] = np.linspace(0.9, 0.5, count)
    return {"labels": labels, "classes": predicted, "probabilities": probabilities}


def test_images_of_mistakes_have_a_limit():
    counts = dict.fromkeys(("train", "validation", "test"), 600)
    info = DatasetInfo("own", "idx", counts, "")
    small = np.zeros((600, 28, 28), np.uint8)
    found = Mistakes.of(wrong_outputs(499), small, info)
    assert found.is_complete
    assert [one.index for one in found.shown[:2]] == [0, 1]
    found = Mistakes.of(wrong_outputs(600), small, info)
    assert (found.count, len(found.shown), found.is_complete) == (600, 500, False)
    noise = np.random.default_rng(0).integers(0, 256, (300, 90, 70, 3), np.uint8)
    found = Mistakes.of(wrong_outputs(300), noise, info)
    assert 50 < len(found.shown) < 300
    assert sum(len(one.image) for one in found.shown) <= 1_000_000


def test_known_wrong_labels_are_apart_on_the_test_images_of_mnist_only():
    outputs = wrong_outputs(1000)
    outputs["classes"][:900] = outputs["labels"][:900]
    images = np.zeros((1000, 28, 28), np.uint8)
    info = DatasetInfo("mnist", "idx", {}, "", {"test": label_errors.MNIST_TEST})
    found = Mistakes.of(outputs, images, info)
    assert [one.index for one in found.mislabelled] == [947]
    assert found.mislabelled[0].note == "most people see 9"
    assert len(found.shown) == 99
    assert found.is_complete
    other = dataclasses.replace(info, fingerprints={"test": "0"})
    assert not Mistakes.of(outputs, images, other).mislabelled


def test_known_wrong_labels_are_of_these_test_images(mnist_dir):
    dataset = data.load("mnist", "idx", str(mnist_dir))
    assert dataset.fingerprints["test"] == label_errors.MNIST_TEST
    labels = dataset.test.labels[[*label_errors.KNOWN]]
    # As `given_original_label` in mnist_mturk.json.
    assert labels.tolist() == [8, 0, 9, 4, 2, 5, 6, 6, 5, 5, 0, 1, 4, 6, 5]


def test_seeds_are_one_row_and_recipes_apart(reported, tmp_path):
    first, second = reported / "seed0", reported / "seed1"
    other, page = tmp_path / "other", tmp_path / "c.html"
    loop.train_and_evaluate(tiny_config(num_steps=20, seed=1), other)
    flags = [*map(str, (first, second, first, other)), f"--output={page}"]
    assert report.main(flags) == 0
    accuracies = [
        json.loads((workdir / "summary.json").read_text())["test"]["accuracy"]
        for workdir in (first, second)
    ]
    spread = f"{np.mean(accuracies):.2%} ± {np.std(accuracies, ddof=1):.2%}"
    rows = re.findall(
        "</span> (.*?)</th><td>(.*?)</td><td>(.*?)</td>", page.read_text()
    )
    folder = os.path.commonpath([reported, tmp_path])
    names = [os.path.relpath(place, folder) for place in (first, second, other)]
    assert rows[0] == (f"{names[0]}, {names[1]}", "2", spread)
    assert rows[1][:2] == (names[2], "1")


def test_a_report_shows_the_test_split(reported, monkeypatch):
    workdir, given = reported / "seed0", {}
    for name in ("mistakes", "confusion"):
        draw = getattr(html.plots, name)

        def record(*arguments, name=name, draw=draw):
            given[name] = arguments
            return draw(*arguments)

        monkeypatch.setattr(html.plots, name, record)
    assert report.main([f"--workdir={workdir}"]) == 0
    config = configs.from_json((workdir / "config.json").read_text())
    path = open_run(workdir, config=config, use_mesh=True).predict_split("test")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    wrong = [row for row in rows if row["label"] != row["classes"]]
    wrong.sort(key=lambda row: -max(row["probabilities"]))
    images = data.load("synthetic", "synthetic").test.images
    np.testing.assert_array_equal(
        given["mistakes"][0], images[[row["index"] for row in wrong[:36]]]
    )
    matrix = np.zeros((10, 10), int)
    for row in rows:
        matrix[row["label"], row["classes"]] += 1
    np.testing.assert_array_equal(given["confusion"][0], matrix)
    page = (workdir / "report.html").read_text()
    precision = matrix[3, 3] / matrix[:, 3].sum()
    recall = matrix[3, 3] / matrix[3].sum()
    row = f'<th scope="row">3</th><td>{matrix[3].sum()}</td><td>{precision:.2%}</td>\n'
    assert f"{row}<td>{recall:.2%}</td>" in page
    assert "million floating-point operations" in page
    recalls, f1 = np.diag(matrix) / matrix.sum(axis=1), []
    for label, count in enumerate(matrix.sum(axis=1)):
        f1.append(2 * matrix[label, label] / (count + matrix[:, label].sum()))
    for name, weights in (("macro mean", None), ("mean weighted", matrix.sum(axis=1))):
        (found,) = re.findall(f"{name}.*?</tr>", page, re.S)
        assert f"<td>{np.average(recalls, weights=weights):.2%}</td>" in found
        assert f"<td>{np.average(f1, weights=weights):.2%}</td></tr>" in found
    indices = re.findall(r'<span class="quiet">#(\d+)</span>', page)
    assert [int(index) for index in indices] == [row["index"] for row in wrong]
    shares = re.findall(r"<figcaption>\d as \d, (\d+) %", page)
    assert shares == [f"{100 * max(row['probabilities']):.0f}" for row in wrong]
    temperature = open_run(workdir).calibration.temperature
    assert f"The temperature, {temperature:.3f}, is fitted" in page


@pytest.fixture
def many():
    """A confusion matrix of 100 classes, of which one is never seen."""
    confusion = np.diag(np.full(100, 50))
    confusion[7, 12], confusion[7, 7] = 40, 10
    confusion[30, 31] = 5
    confusion[99] = 0
    return confusion, [f"class {label}" for label in range(100)]


def test_of_many_classes_the_worst_are_shown(many):
    rows = html._classes(*many)
    assert len(rows) == 40
    assert [row["label"] for row in rows[:2]] == ["class 7", "class 12"]
    assert rows[0]["recall"] == 0.2
    assert rows[1]["precision"] == 50 / 90
    assert "class 99" not in {row["label"] for row in rows}
    assert html._confused(*many) == [
        ("class 7", "class 12", 40),
        ("class 30", "class 31", 5),
    ]
    ten = html._classes(many[0][:10, :10], many[1][:10])
    assert [row["label"] for row in ten] == many[1][:10]


def write_page(summary, confusion, workdir, records=()):
    """Writes the report of a summary, of figures that no run has to learn."""
    labels, classes = np.divmod(np.arange(confusion.size), len(confusion))
    labels, classes = (np.repeat(one, confusion.ravel()) for one in (labels, classes))
    logits = np.eye(len(confusion), dtype=np.float32)[classes]
    outputs = {
        "labels": labels,
        "classes": classes,
        "logits": logits,
        "probabilities": logits,
    }
    results = html.Results(
        history=History("run", summary, [*records]),
        outputs={"validation": outputs, "test": outputs},
        test_images=np.zeros((len(labels), *summary.dataset.image_shape), np.uint8),
        params={},
        costs=html.Costs([], None, 0.0, 0.0, 0.0),
    )
    return html.write_report(results, workdir).read_text()


def test_a_page_of_many_classes_says_what_it_leaves_out(finished_run, many, tmp_path):
    confusion, names = many
    dataset = dataclasses.replace(
        finished_run[1].dataset, class_names=tuple(names), image_shape=(9, 7, 3)
    )
    summary = dataclasses.replace(finished_run[1], dataset=dataset)
    page = write_page(summary, confusion, tmp_path)
    assert "The 40 classes with the lowest F1, of 100." in page
    assert '<th scope="row">class 7</th><td>class 12</td><td>40 <' in page
    # Northcutt's images are of MNIST.
    assert "Known wrong labels" not in page
    assert "images of 9×7×3 in\n100 classes" in page


@pytest.mark.parametrize(
    ("machine", "said"),
    [
        ({}, "Machine: H200."),  # Of an older version.
        ({"device": "NVIDIA H200"}, "Machine: NVIDIA H200."),
        ({"device": "a CPU", "threads": 2}, "Machine: a CPU, 2 threads."),
    ],
)
def test_a_report_names_any_machine(machine, said, finished_run, tmp_path):
    summary = finished_run[1]
    devices = dataclasses.replace(summary.devices, platform="gpu", kind="H200")
    summary = dataclasses.replace(summary, machine=machine, devices=devices)
    assert said in write_page(summary, np.eye(10, dtype=int), tmp_path)


@pytest.fixture
def confused(finished_run, tmp_path):
    """A report with more mistakes than images; most of "a" as "A", and of 12,345 steps.

    The label of an "A" that is taken for a "b" is known to be wrong.
    """
    confusion = np.diag([0, 0, 0, 0, *[100] * 6])
    confusion[0, 1], confusion[1, 2], confusion[3, 4] = 900, 100, 5
    dataset = dataclasses.replace(
        finished_run[1].dataset,
        class_names=tuple("aAbBcCdDeE"),
        fingerprints={"test": label_errors.MNIST_TEST},
    )
    summary = dataclasses.replace(finished_run[1], dataset=dataset)
    records = [
        record | {"step": record["step"] + 12_305}
        for record in History.read(finished_run[0]).records
    ]
    write_page(summary, confusion, tmp_path, records)
    return tmp_path / "report.html"


def test_only_mistakes_with_an_image_can_be_shown(confused):
    page = confused.read_text()
    pairs = re.findall('data-label="(.)" data-prediction="(.)" aria-label', page)
    assert pairs == [("a", "A"), ("A", "b")]
    choices = re.findall("<option>(.)</option>", page)
    assert choices == ["A", "a", "A", "b"]  # Labels, then predictions.
    assert page.index('id="filter"') < page.index("Known wrong labels")


def test_a_pair_shows_images_of_known_wrong_labels_too(confused, browser):
    browser.get(confused.as_uri())
    run = browser.execute_script
    run("document.querySelector('button[data-label=A]').click();")
    figures = run(
        "return [...document.querySelectorAll('figure[data-label]:not([hidden])')]"
        ".map((one) => one.textContent);"
    )
    assert len(figures) == 1
    assert figures[0].startswith("A as b")
    assert run("return shown.textContent;") == "1 of 500"


def test_a_chart_names_a_step_with_all_its_digits(confused, browser):
    browser.get(confused.as_uri())
    run = browser.execute_script
    run(
        "document.querySelector('.plot').dispatchEvent("
        "new KeyboardEvent('keydown', {key: 'ArrowLeft'}));"
    )
    said = run("return document.querySelector('#charts [role=status]').textContent;")
    assert said.startswith("step 12,345; ")


def test_a_confusion_matrix_has_names_while_they_fit(many):
    confusion, names = many
    named = plots.confusion(confusion[:20, :20], ["$long$ " * 3, *names[1:20]])
    (axis,) = named.axes
    texts = [tick.get_text() for tick in axis.get_yticklabels()]
    assert texts[:2] == ["$long$ $long$ $…", "class 1"]
    assert [text.get_text() for text in axis.texts].count("40") == 1
    axis, _bar = plots.confusion(confusion, names).axes
    assert not axis.texts


@pytest.mark.slow
def test_a_run_of_devices_that_are_not_here_is_reported(reported, tmp_path):
    workdir = shutil.copytree(reported / "seed0", tmp_path / "run")
    text = (workdir / "config.json").read_text()
    (workdir / "config.json").write_text(text.replace('"data": 1', '"data": 64'))
    assert report.main([f"--workdir={workdir}"]) == 0


def test_a_folder_without_a_finished_run_is_told(reported, tmp_path, capsys):
    workdir = reported / "seed0"
    for flags in (
        [f"--workdir={tmp_path}"],
        [f"--workdir={workdir}", "--compare", str(tmp_path / "missing")],
    ):
        assert report.main(flags) == 2
        error = capsys.readouterr().err
        assert str(tmp_path) in error
        assert len(error.splitlines()) <= 2
    with pytest.raises(UserError, match="missing does not exist"):
        open_run(workdir).report(str(tmp_path / "missing"))


@pytest.mark.slow
def test_a_killed_run_is_reported_by_its_checkpoint(reported, tmp_path):
    workdir = shutil.copytree(reported / "seed0", tmp_path / "killed")
    (workdir / "summary.json").unlink()
    (workdir / "report.html").unlink()
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 41, "spl')
    assert report.main([f"--workdir={workdir}"]) == 0
    assert "test accuracy" in (workdir / "report.html").read_text()


def test_a_report_that_was_not_drawn_is_when_the_run_is_asked_for_again(
    reported, tmp_path
):
    workdir = shutil.copytree(reported / "seed0", tmp_path / "run")
    (workdir / "report.html").unlink()
    (workdir / "summary.json").unlink()  # It is written after the report.
    loop.train_and_evaluate(config_of(0), workdir)
    assert (workdir / "report.html").exists()


def test_intervals_are_those_of_the_textbook():
    # Newcombe, 1998, "Two-sided confidence intervals for the single proportion".
    np.testing.assert_allclose(
        statistics.interval(81, 263), (0.2553, 0.3662), atol=1e-4
    )
    np.testing.assert_allclose(statistics.interval(0, 20), (0, 0.1611), atol=1e-4)
    values = np.arange(101.0)
    low, high = statistics.mean_interval(values)
    np.testing.assert_allclose((low + high) / 2, 50)
    np.testing.assert_allclose(high - low, 2 * 1.96 * values.std() / np.sqrt(101))


def test_calibration_of_known_probabilities():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (20_000, 10))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (rng.random((20_000, 1)) < probabilities.cumsum(axis=1)).argmax(axis=1)
    # Labels drawn from the probabilities are what calibration means.
    assert statistics.reliability(logits, labels).ece < 0.01
    found = statistics.reliability(3 * logits, labels)
    assert found.ece > 0.1
    assert found.count.sum() == 20_000
    sure = found.count > 100
    assert (found.confidence > found.accuracy)[sure].all()


@pytest.mark.parametrize("width", [1280, 380])
def test_a_browser_shows_the_report(reported, browser, width):
    browser.set_window_size(width, 900)
    browser.get((reported / "seed0" / "report.html").as_uri())
    loaded = "return [...document.images].every(i => i.complete && i.naturalWidth)"
    assert browser.execute_script(loaded)
    # Wide tables scroll by themselves; the page does not.
    overflow = "return document.documentElement.scrollWidth - window.innerWidth"
    assert browser.execute_script(overflow) <= 0
    assert browser.get_log("browser") == []
