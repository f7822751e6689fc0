"""Downloads MNIST, Fashion-MNIST and KMNIST to a cache and verifies them."""

import concurrent.futures
import contextlib
import hashlib
import http.client
import importlib.util
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator
from pathlib import Path
from typing import NamedTuple, TypeVar

from flaxmnist.data import idx
from flaxmnist.errors import DownloadError, UserError
from flaxmnist.runtime.files import cache_dir, open_regular, partial_folder

LICENCES = {
    "mnist": "CC BY-SA 3.0 (Yann LeCun and Corinna Cortes)",
    "fashion_mnist": "MIT (Zalando SE)",
    "kmnist": "CC BY-SA 4.0 (ROIS-CODH)",
}
FAMILY = tuple(LICENCES)
# SHA-256 of the unpacked files, in the order of `idx.STEMS`. TFDS registers only those
# of the gzipped files.
_UNPACKED = {
    "mnist": (
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    )
}
# Timeouts in seconds: for a connection, and for the next bytes of a transfer.
CONNECT_SECONDS, STALL_SECONDS = 5, 10
# Minimum rate in bytes per second, and the seconds after which a transfer that is
# slower fails.
MIN_RATE, RATE_SECONDS = 10_000, 30
_T = TypeVar("_T")


class Resource(NamedTuple):
    """A file in the registry of TensorFlow Datasets."""

    url: str
    size: int
    sha256: str
    name: str


def package_folder(name: str) -> Path:
    """Returns the directory of a package without importing it.

    Raises:
      ModuleNotFoundError: the package is not installed.
    """
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
    lines = (
        (folder / "url_checksums" / f"{name}.txt")
        .read_text(encoding="utf-8")
        .splitlines()
    )
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


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    with open_regular(path, idx.MAX_BYTES) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_whole(path: Path, resource: Resource) -> bool:
    """Returns whether a file has the registered size and checksum."""
    try:
        same_size = path.stat().st_size == resource.size
        return same_size and sha256(path) == resource.sha256
    except (OSError, UserError):
        return False


def is_published(name: str, index: int, path: Path) -> bool:
    """Returns whether a file is one of a published data set, gzipped or unpacked.

    Args:
      name: name of the data set, one of `FAMILY`.
      index: index of the file in `idx.STEMS`.
      path: the file.
    """
    known = {registered(name)[index].sha256}
    if name in _UNPACKED:
        known.add(_UNPACKED[name][index])
    try:
        return sha256(path) in known
    except (OSError, UserError):
        return False


def cached(name: str) -> list[Path] | None:
    """Returns the four cached files, or None if one is missing or damaged."""
    try:
        folder = cache_dir() / name
    except DownloadError:
        return None
    paths = []
    for resource in registered(name):
        path = folder / resource.name
        if not is_whole(path, resource):
            return None
        paths.append(path)
    return paths


def _within(seconds: float, call: Callable[[], _T]) -> _T:
    """Returns `call()`, or raises TimeoutError after `seconds`.

    The call runs in its own thread, because a name lookup has no timeout, and the
    timeout of a socket restarts with each byte.
    """
    future: concurrent.futures.Future[_T] = concurrent.futures.Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return future.result(seconds)
    except TimeoutError:
        raise TimeoutError(f"no answer within {seconds} s") from None


def reachable(url: str) -> bool:
    """Returns whether the server of `url` answers within `CONNECT_SECONDS`."""
    request = urllib.request.Request(url, method="HEAD")
    try:
        _within(
            CONNECT_SECONDS,
            lambda: urllib.request.urlopen(request, timeout=CONNECT_SECONDS).close(),
        )
    except urllib.error.HTTPError:  # The transfer will report this answer.
        return True
    except (OSError, ValueError, http.client.HTTPException):
        return False
    return True


def fetch(name: str) -> list[Path]:
    """Downloads the files that are missing in the cache, and returns all four.

    A file receives its name only after its size and SHA-256 are verified.

    Raises:
      DownloadError: the server cannot be reached, a transfer stops, is too slow or
        returns another file, or the cache cannot be written.
    """
    resources = registered(name)
    if not reachable(resources[0].url):
        raise DownloadError(
            f"{resources[0].url} cannot be reached. Connect to a network, or set "
            "data.dir or FLAXMNIST_DATA_DIR to the directory of the files"
        )
    folder = cache_dir() / name
    paths = [folder / resource.name for resource in resources]
    try:
        with partial_folder(folder) as partial:
            for path, resource in zip(paths, resources, strict=True):
                if not is_whole(path, resource):
                    _transfer(resource, partial / path.name)
                    os.replace(partial / path.name, path)
    except OSError as error:
        raise DownloadError(
            f"{folder} cannot be written ({error.strerror}). Set FLAXMNIST_CACHE_DIR "
            "to a writable directory"
        ) from None
    return paths


def _blocks(resource: Resource) -> Generator[bytes, None, None]:
    """Yields the bytes of a resource; raises DownloadError if that fails or stalls."""
    size, begin = 0, time.monotonic()
    try:
        with _within(
            STALL_SECONDS,
            lambda: urllib.request.urlopen(resource.url, timeout=STALL_SECONDS),
        ) as reply:
            while block := _within(STALL_SECONDS, lambda: reply.read1(1 << 16)):
                size += len(block)
                seconds = time.monotonic() - begin
                if seconds > RATE_SECONDS and size < MIN_RATE * seconds:
                    raise TimeoutError(f"slower than {MIN_RATE:,} bytes per second")
                yield block
    except (OSError, ValueError, EOFError, http.client.HTTPException) as error:
        raise DownloadError(
            f"{resource.url} failed after {size:,} of {resource.size:,} bytes "
            f"({error}). Try again"
        ) from None


def _transfer(resource: Resource, path: Path) -> None:
    """Downloads a file to `path`; raises DownloadError if the content is wrong."""
    digest, size = hashlib.sha256(), 0
    with path.open("wb") as file, contextlib.closing(_blocks(resource)) as blocks:
        for block in blocks:
            file.write(block)
            digest.update(block)
            size += len(block)
            if size > resource.size:
                break
    if size != resource.size:
        found = "more bytes" if size > resource.size else f"{size:,} bytes"
        raise DownloadError(
            f"{resource.url} returned {found}; expected {resource.size:,} bytes. "
            "Try again"
        )
    if digest.hexdigest() != resource.sha256:
        raise DownloadError(
            f"{resource.url} has the SHA-256 {digest.hexdigest()[:12]}…; expected "
            f"{resource.sha256[:12]}…. The file was not kept"
        )
