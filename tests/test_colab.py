"""The notebooks run from top to bottom, shortened by their one parameter."""

import ast
import json
import re
import subprocess
import zipfile
from collections.abc import Iterator
from importlib.metadata import PathDistribution
from types import ModuleType

import nbformat
import pytest
from helpers import ROOT, find_python, freeze, install, new_environment, save_idx
from IPython.core.inputtransformer2 import TransformerManager
from nbclient import NotebookClient
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import flaxmnist
from flaxmnist import data

FOLDER = ROOT / "colab"
REPOSITORY = "git+https://github.com/flaxmnist/flaxmnist"
# Versions that Colab's runtime of Python 3.13 has preinstalled.
PINS = ROOT / "tests/fixtures/colab-constraints.txt"
# What runs a notebook; and TensorFlow, because TensorBoard, etils and Orbax import it
# where it is installed.
RUNTIME = ("ipykernel", "ipywidgets", "nbclient", "pip", "setuptools", "tensorflow")
SHORT = {
    "quickstart": "num_epochs = 0.25",
    "from_tensorflow": "num_steps = 40",
    "functional_steps": "num_steps = 10",
    "devices": "num_steps = 10",
}


@pytest.fixture(scope="session")
def few_images(tmp_path_factory):
    """A folder of 600 real digits, so that no notebook downloads any."""
    folder = tmp_path_factory.mktemp("few")
    bundled = data.load("mnist", "bundled")
    images, labels = bundled.train.images[:400], bundled.train.labels[:400]
    save_idx(
        folder, [images, labels, bundled.test.images[:200], bundled.test.labels[:200]]
    )
    return folder


def shortened(name: str) -> nbformat.NotebookNode:
    """Returns a notebook with its parameter replaced by a small one."""
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    (parameters,) = [
        cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())
    ]
    parameters.source = SHORT[name]
    return notebook


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORT)
def test_a_notebook_runs_from_top_to_bottom(name, few_images, tmp_path, monkeypatch):
    monkeypatch.setenv("FLAXMNIST_DATA_DIR", str(few_images))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    notebook = shortened(name)
    client = NotebookClient(
        notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()  # Raises at the first error.
    if name == "quickstart":
        training = next(c for c in notebook.cells if "flaxmnist.train" in c.source)
        shown = [output for output in training.outputs if "data" in output]
        assert any("application/vnd.jupyter.widget-view+json" in o.data for o in shown)
        said = "".join(o.get("text", "") for o in training.outputs)
        assert "validation" in said


@pytest.mark.slow
def test_in_colab_the_notebooks_change_no_package_and_run(
    wheel, few_images, tmp_path, monkeypatch
):
    """Other packages of Colab cannot change, unless a dependency of flaxmnist does."""
    python = new_environment(tmp_path / "runtime", find_python("3.13"))
    info = zipfile.Path(wheel, f"flaxmnist-{flaxmnist.__version__}.dist-info/")
    required = map(Requirement, PathDistribution(info).requires)
    needed = {canonicalize_name(each.name) for each in required if not each.marker}
    pins = map(Requirement, PINS.read_text().splitlines())
    pinned = needed & {canonicalize_name(pin.name) for pin in pins}
    install(python, "--constraint", PINS, *pinned, *RUNTIME)
    preinstalled = freeze(python)

    monkeypatch.setenv("FLAXMNIST_DATA_DIR", str(few_images))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    for name in SHORT:
        notebook = shortened(name)
        (setup,) = [cell for cell in notebook.cells if REPOSITORY in cell.source]
        # The first notebook installs it and uses it in the same kernel.
        setup.source = setup.source.replace(REPOSITORY, str(wheel))
        path = tmp_path / f"{name}.ipynb"
        nbformat.write(notebook, path)
        subprocess.run([python.parent / "jupyter-execute", path], check=True)
    installed = freeze(python)
    assert any(line.startswith("flaxmnist @") for line in installed - preinstalled)
    assert preinstalled - installed == set()


@pytest.mark.parametrize("name", SHORT)
def test_a_notebook_is_committed_with_the_outputs_of_a_real_run(name):
    path = FOLDER / f"{name}.ipynb"
    assert path.stat().st_size < 1_000_000
    notebook = json.loads(path.read_text())
    assert f"/blob/main/colab/{name}.ipynb" in "".join(notebook["cells"][0]["source"])
    outputs = [cell["outputs"] for cell in notebook["cells"] if "outputs" in cell]
    assert sum(map(len, outputs)) > 4
    assert max(len(json.dumps(each)) for each in outputs) < 300_000
    said = json.dumps(outputs)
    for unwanted in ('"error"', "WARNING", "!!!", "/tmp", "/home"):
        assert unwanted not in said


def test_a_digit_drawn_in_quickstart_is_read(browser, tmp_path):
    actions = pytest.importorskip("selenium.webdriver").ActionChains(browser, 30)
    wait = pytest.importorskip("selenium.webdriver.support.ui").WebDriverWait
    cells = nbformat.read(FOLDER / "quickstart.ipynb", as_version=4).cells
    page = tmp_path / "output.html"
    page.write_text(cells[-1].outputs[-1].data["text/html"])
    browser.get(page.as_uri())
    browser.switch_to.frame(browser.find_element("tag name", "iframe"))
    sheet = browser.find_element("id", "sheet")
    actions.move_to_element_with_offset(sheet, -50, -60).click_and_hold()
    for corner in [(50, -60), (-10, 70)]:
        actions.move_to_element_with_offset(sheet, *corner)
    actions.release().perform()
    spoken = browser.find_element("id", "spoken")
    wait(browser, 30).until(lambda _: spoken.text.startswith("Prediction: 7,"))
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("name", ["quickstart", "from_tensorflow", "functional_steps"])
def test_a_notebook_states_the_accuracies_of_its_outputs(name):
    cells = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    shown = json.dumps([cell.get("outputs") for cell in cells])
    reached = [100 * float(part) for part in re.findall(r"'accuracy': ([\d.]+)", shown)]
    reached += map(float, re.findall(r"([\d.]+)%", shown))
    stated = [float(number) for number in re.findall(r"([\d.]+) %", text)]
    assert stated
    for percent in stated:
        assert any(abs(percent - value) < 0.6 for value in reached), percent


def test_every_notebook_is_tested():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(SHORT)


DOCUMENTS = [
    str(path.relative_to(ROOT))
    for pattern in ("README.md", "docs/**/*.md", "colab/*.ipynb", "examples/*.py")
    for path in sorted(ROOT.glob(pattern))
]


def code_of(document: str) -> str:
    """Returns the Python code of a notebook, of a Markdown file or of a module."""
    path = ROOT / document
    if path.suffix == ".py":
        return path.read_text()
    if path.suffix == ".md":
        return "\n".join(
            re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)
        )
    cells = nbformat.read(path, as_version=4).cells
    source = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    return TransformerManager().transform_cell(source)


def own_names(code: str) -> Iterator[str]:
    """Yields each name of flaxmnist that code uses, such as ``flaxmnist.data.load``."""
    bound: dict[str, str] = {}
    nodes = list(ast.walk(ast.parse(code)))
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                bound[alias.asname or alias.name] = f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                name = alias.name if alias.asname else alias.name.split(".")[0]
                bound[alias.asname or name] = name
    dotted = {ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute)}
    for name in dotted | bound.keys():
        root, dot, rest = name.partition(".")
        full = bound.get(root, root) + dot + rest
        if re.fullmatch(r"flaxmnist(\.\w+)+", full):
            yield full


def is_public(name: str) -> bool:
    """Returns whether every module on the way lists the next part in `__all__`."""
    value = flaxmnist
    for part in name.split(".")[1:]:
        if isinstance(value, ModuleType):
            if part not in value.__all__:
                return False
            value = getattr(value, part)
    return True


@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_document_uses_public_names_only(document):
    names = set(own_names(code_of(document)))
    if document.startswith("colab"):
        assert names & {"flaxmnist.load", "flaxmnist.train"}
    assert [name for name in sorted(names) if not is_public(name)] == []


def test_every_public_name_is_documented():
    inline = "\n".join(
        code
        for path in (ROOT / document for document in DOCUMENTS)
        for code in re.findall(r"`([^`\n]+)`", path.read_text())
    )
    code = "\n".join(map(code_of, DOCUMENTS))
    words = set(re.findall(r"\w+", f"{inline}\n{code}"))
    assert sorted(set(flaxmnist.__all__) - words) == []


def test_a_private_name_in_a_document_is_found():
    code = (
        "import flaxmnist as f; from flaxmnist import data; data.load; f.training.begin"
    )
    assert {name: is_public(name) for name in own_names(code)} == {
        "flaxmnist.data": True,
        "flaxmnist.data.load": True,
        "flaxmnist.training": False,
        "flaxmnist.training.begin": False,
    }
