"""The notebooks run from top to bottom, shortened by their one parameter."""

import json
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from test_data import save_idx

from flaxmnist import data

FOLDER = Path(__file__).parents[1] / "colab"
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


# Those that take the longest to compile have a run of their own.
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("from_tensorflow", marks=pytest.mark.slow),
        pytest.param("functional_steps", marks=pytest.mark.slow),
        "quickstart",
        "devices",
    ],
)
def test_a_notebook_runs_from_top_to_bottom(name, few_images, tmp_path, monkeypatch):
    monkeypatch.setenv("FLAXMNIST_DATA_DIR", str(few_images))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    (parameters,) = [
        cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())
    ]
    parameters.source = SHORT[name]
    client = NotebookClient(
        notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()  # Raises at the first error.
    if name == "quickstart":
        (training,) = [c for c in notebook.cells if "train_and_evaluate" in c.source]
        shown = [output for output in training.outputs if "data" in output]
        assert any("application/vnd.jupyter.widget-view+json" in o.data for o in shown)
        said = "".join(o.get("text", "") for o in training.outputs)
        assert "validation" in said


@pytest.mark.parametrize("name", SHORT)
def test_a_notebook_is_committed_with_the_outputs_of_a_real_run(name):
    path = FOLDER / f"{name}.ipynb"
    assert path.stat().st_size < 1_000_000
    notebook = json.loads(path.read_text())
    assert f"/blob/main/colab/{name}.ipynb" in "".join(notebook["cells"][0]["source"])
    outputs = [cell["outputs"] for cell in notebook["cells"] if "outputs" in cell]
    assert sum(map(len, outputs)) > 4
    said = json.dumps(outputs)
    for unwanted in ('"error"', "WARNING", "!!!"):
        assert unwanted not in said


def test_every_notebook_is_tested():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(SHORT)
