"""The wheel holds the library, describes it, and works without the repository."""

import email
import re
import subprocess
import zipfile

import pytest
from helpers import ROOT, install, new_environment
from markdown_it import MarkdownIt
from PIL import Image

import flaxmnist
from flaxmnist import data

# The path in this repository of a file on GitHub, or of a notebook in Colab.
OWN_FILE = re.compile(r"^https://.*/flaxmnist/flaxmnist/(?:blob/)?main/([^#]*)")
COMMANDS = (
    "flaxmnist --config mlp:smoke --workdir run",
    "python -m flaxmnist.predict --workdir run digit.png",
    "python -m flaxmnist.export --workdir run --format numpy",
)


@pytest.fixture(scope="module")
def archive(wheel):
    with zipfile.ZipFile(wheel) as archive:
        yield archive


@pytest.fixture(scope="module")
def metadata(archive):
    (name,) = [name for name in archive.namelist() if name.endswith("/METADATA")]
    return email.message_from_bytes(archive.read(name))


def test_the_wheel_contains_the_library_its_data_and_nothing_else(archive):
    expected = {
        path.relative_to(folder.parent).as_posix()
        for folder in (ROOT / "flaxmnist", ROOT / "configs")
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    expected = {re.sub("^configs/", "flaxmnist/configs/", name) for name in expected}
    info = f"flaxmnist-{flaxmnist.__version__}.dist-info/"
    found = {name for name in archive.namelist() if not name.startswith(info)}
    assert found == expected
    assert {"flaxmnist/py.typed", "flaxmnist/configs/cnn.py"} <= found


def test_the_metadata_has_version_links_and_python_versions(metadata):
    assert metadata["Version"] == flaxmnist.__version__
    urls = dict(url.split(", ") for url in metadata.get_all("Project-URL"))
    assert urls.keys() == {
        "Homepage",
        "Documentation",
        "Source",
        "Changelog",
        "Issues",
    }
    classifiers = metadata.get_all("Classifier")
    for minor in (11, 12, 13):
        assert f"Programming Language :: Python :: 3.{minor}" in classifiers
    assert "Typing :: Typed" in classifiers


def links_of(text):
    """Returns the targets of the links and images of a Markdown text."""
    tokens = MarkdownIt().enable("table").parse(text)
    inline = [child for token in tokens for child in token.children or ()]
    targets = [token.attrGet("href") or token.attrGet("src") for token in inline]
    return [str(target) for target in targets if target]


def test_every_link_of_the_docs_works():
    pages = [*ROOT.glob("docs/**/*.md")]
    assert pages
    for page in pages:
        for link in links_of(page.read_text()):
            path = page.parent / link.partition("#")[0]
            assert link.startswith(("https://", "http://")) or path.exists(), (
                f"{page}: {link}"
            )


def test_every_link_of_the_readme_works_outside_the_repository(metadata):
    assert metadata["Description-Content-Type"] == "text/markdown"
    links = links_of(metadata.get_payload())
    assert len(links) > 15
    for link in links:
        assert link.startswith(("https://", "#")), f"{link} is relative"
        if own := OWN_FILE.match(link):
            assert (ROOT / own[1]).is_file(), f"{link} does not exist"


@pytest.mark.slow
def test_an_installed_wheel_trains_predicts_and_exports(wheel, tmp_path):
    python = new_environment(tmp_path / "environment")
    install(python, wheel)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    digit = data.load("mnist", "bundled").test.images[0]
    Image.fromarray(digit).save(folder / "digit.png")
    for command in COMMANDS:
        program, *arguments = command.split()
        subprocess.run([python.parent / program, *arguments], cwd=folder, check=True)
    assert (folder / "run/export/numpy/weights.npz").is_file()
