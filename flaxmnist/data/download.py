"""Fetches the MNIST family from TFDS's addresses, checked and cached."""

import contextlib
import hashlib
import importlib.util
import os
import tempfile
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import NamedTuple

from flaxmnist.checks import UserError, path_of
from flaxmnist.data import idx

FAMILY = ("mnist", "fashion_mnist", "kmnist")
# Seconds to wait for a connection, and for the next bytes of a transfer.
CONNECT_SECONDS = 5
STALL_SECONDS = 10


class Resource(NamedTuple):
    """A file that TensorFlow Datasets has registered."""

    url: str
    size: int
    sha256: str
    name: str


class DownloadError(UserError):
    """The network or a server failed, so that another source may be tried."""


def package_folder(name: str) -> Path:
    """Returns where a package lies, without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"the package {name} is not installed", name=name)
    return Path(spec.submodule_search_locations[0])


def registered(name: str) -> list[Resource]:
    """Returns the four files of a data set of the family, in the order of `idx.STEMS`.

    The registry is a table inside the tensorflow-datasets package; reading it needs
    neither TensorFlow nor an import.
    """
    folder = package_folder("tensorflow_datasets")
    lines = (folder / "url_checksums" / f"{name}.txt").read_text().splitlines()
    resources = []
    for line in lines:
        url, size, sha256, file_name = line.split("\t")
        resources.append(Resource(url, int(size), sha256, file_name))
    return sorted(
        resources,
        key=lambda resource: next(
            i for i, stem in enumerate(idx.STEMS) if resource.name.startswith(stem)
        ),
    )


def cache_dir() -> Path:
    """Returns the folder for downloads: FLAXMNIST_CACHE_DIR, or the user's cache.

    Raises:
      DownloadError: the user has no home directory, or FLAXMNIST_CACHE_DIR is no path.
    """
    try:
        if path := os.environ.get("FLAXMNIST_CACHE_DIR"):
            return path_of(path, "FLAXMNIST_CACHE_DIR")
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        return Path(base).expanduser() / "flaxmnist"
    except UserError as error:
        raise DownloadError(str(error)) from None
    except RuntimeError:
        raise DownloadError(
            "this user has no home directory; set FLAXMNIST_CACHE_DIR to a directory "
            "that can be written"
        ) from None


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_whole(path: Path, resource: Resource) -> bool:
    return path.is_file() and sha256(path) == resource.sha256


def cached(name: str) -> list[Path] | None:
    """Returns the four cached files if all are there, whole and unchanged."""
    try:
        folder = cache_dir() / name
    except DownloadError:
        return None
    paths = []
    for resource in registered(name):
        path = folder / resource.name
        if not _is_whole(path, resource):
            return None
        paths.append(path)
    return paths


def reachable(url: str) -> bool:
    """Returns whether the server of `url` answers within `CONNECT_SECONDS`.

    In a thread of its own, because looking up a name has no timeout.
    """
    answered = threading.Event()

    def ask() -> None:
        request = urllib.request.Request(url, method="HEAD")
        with contextlib.suppress(OSError, ValueError):
            # An error is an answer too; the transfer will say what is wrong.
            with contextlib.suppress(urllib.error.HTTPError):
                urllib.request.urlopen(request, timeout=CONNECT_SECONDS).close()
            answered.set()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS)
    return answered.is_set()


def fetch(name: str) -> list[Path]:
    """Downloads what the cache lacks and returns the four files.

    A file gets its name only when it is complete and its SHA-256 is the registered one.

    Raises:
      DownloadError: no network, the transfer was cut off, stalled or not the file,
        or the cache cannot be written.
    """
    resources = registered(name)
    if not reachable(resources[0].url):
        raise DownloadError(
            f"{resources[0].url} cannot be reached: connect to a network, or give the "
            "files with data.dir or FLAXMNIST_DATA_DIR"
        )
    folder = cache_dir() / name
    paths = [folder / resource.name for resource in resources]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, resource in zip(paths, resources, strict=True):
            if not _is_whole(path, resource):
                _transfer(resource, path)
    except OSError as error:
        raise DownloadError(
            f"{folder} cannot be written ({error.strerror}): set FLAXMNIST_CACHE_DIR "
            "to a folder that can"
        ) from None
    return paths


def _transfer(resource: Resource, path: Path) -> None:
    digest, size = hashlib.sha256(), 0
    # A name of its own each time: several processes may fetch at once.
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=path.name + ".partial-")
    try:
        with os.fdopen(handle, "wb") as file:
            try:
                with urllib.request.urlopen(
                    resource.url, timeout=STALL_SECONDS
                ) as reply:
                    while size <= resource.size and (block := reply.read(1 << 16)):
                        file.write(block)
                        digest.update(block)
                        size += len(block)
            except (OSError, ValueError, EOFError) as error:
                raise DownloadError(
                    f"{resource.url} failed after {size:,} of {resource.size:,} bytes "
                    f"({error}): try again"
                ) from None
        if size != resource.size:
            found = "more than that" if size > resource.size else f"{size:,}"
            raise DownloadError(
                f"{resource.url} gave {found} of {resource.size:,} bytes: try again"
            )
        if digest.hexdigest() != resource.sha256:
            raise DownloadError(
                f"{resource.url} has the SHA-256 {digest.hexdigest()[:12]}…: expected "
                f"{resource.sha256[:12]}…; the file was not kept"
            )
        os.replace(partial, path)
    finally:
        Path(partial).unlink(missing_ok=True)
