"""Signatures with a key that only this user on this machine has."""

import contextlib
import hashlib
import hmac
import os
import secrets
import stat
import tempfile
from pathlib import Path

from flaxmnist.errors import UserError, shown
from flaxmnist.runtime import durable, files

_KEY_BYTES = 32


def sign(text: str) -> str:
    """Returns the HMAC-SHA256 of a text in hexadecimal digits.

    The first call of a user creates the key, 32 random bytes in the cache directory.

    Raises:
      UserError: the key cannot be read or written.
    """
    path = _path()
    try:
        if not path.exists():
            _create(path)
        return _hmac(_read(path), text)
    except OSError as error:
        raise UserError(
            f"{shown(str(path))} cannot be read or written ({error.strerror}). Set "
            "FLAXMNIST_CACHE_DIR to a writable directory"
        ) from None


def is_signed(text: str, signature: str) -> bool:
    """Returns whether :func:`sign` made the signature of a text for this user."""
    try:
        expected = _hmac(_read(_path()), text)
    except (OSError, UserError):
        return False
    found = signature.encode(errors="replace")  # JSON may contain any characters.
    return hmac.compare_digest(expected.encode(), found)


def key_problem() -> str:
    """Returns why no signature of this user can be checked; "" if that is possible."""
    try:
        _read(_path())
    except FileNotFoundError:  # This user has signed nothing yet.
        return ""
    except OSError as error:
        return f"{shown(str(_path()))} cannot be read ({error.strerror})"
    except UserError as error:
        return str(error)
    return ""


def _path() -> Path:
    # Several users may share a cache directory.
    user = os.getuid() if hasattr(os, "getuid") else 0
    return files.cache_dir() / f"key-{user}"


def _create(path: Path) -> None:
    durable.make_directory(path.parent)
    with files.locked(path.parent):
        if path.exists():  # Another process was faster.
            return
        handle, partial = tempfile.mkstemp(prefix=f"{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(secrets.token_bytes(_KEY_BYTES))
                file.flush()
                os.fsync(file.fileno())
            durable.replace(Path(partial), path)
        finally:
            Path(partial).unlink(missing_ok=True)


def _read(path: Path) -> bytes:
    """Returns the key.

    Raises:
      OSError: it cannot be read.
      UserError: it is not a key, or others could have read or written it.
    """
    with contextlib.suppress(UserError), files.open_regular(path, _KEY_BYTES) as file:
        key, status = file.read(), os.fstat(file.fileno())
        is_private = os.name == "nt" or (
            status.st_uid == os.getuid() and not stat.S_IMODE(status.st_mode) & 0o077
        )
        if is_private and len(key) == _KEY_BYTES:
            return key
    raise UserError(
        f"{shown(str(path))} is not a private key; expected {_KEY_BYTES} bytes that "
        "only this user can read. Remove it"
    )


def _hmac(key: bytes, text: str) -> str:
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
