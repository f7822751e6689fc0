"""Messages for failures of the machine, such as a full disk, with advice."""

import errno
import os
import socket

import jax

from flaxmnist.errors import UserError

_DISK = "free some space on that disk, or use another"
_LIMIT = "allow more open files, as `ulimit -n 4096` does"
_PERMISSION = "change its permissions, or use another path"
_ADVICE: dict[int | None, str] = {
    errno.EACCES: _PERMISSION,
    errno.EPERM: _PERMISSION,
    errno.EROFS: "use a path on a disk that can be written",
    errno.ENOSPC: _DISK,
    errno.EDQUOT: _DISK,
    errno.EMFILE: _LIMIT,
    errno.ENFILE: _LIMIT,
}
_MEMORY = "close other programs, or use a smaller model or batch_size"


def is_of_files(error: OSError) -> bool:
    """Returns whether the file system raised an error, not the network or a library."""
    network = ConnectionRefusedError | ConnectionResetError | socket.gaierror
    return error.errno is not None and not isinstance(error, network)


def explain(error: BaseException) -> str | None:
    """Returns a message if the user or the machine caused the error, else None."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and is_of_files(error):
        path = "a file" if error.filename is None else os.fsdecode(error.filename)
        advice = _ADVICE.get(error.errno, "check that path and its disk")
        return f"{path} cannot be read or written ({error.strerror}); {advice}"
    text = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    if isinstance(error, MemoryError):
        return f"out of memory ({text}); {_MEMORY}"
    if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in text:
        return f"out of memory on the device ({text}); {_MEMORY}"
    if isinstance(error, RuntimeError) and "can't start new thread" in text:
        return f"{text}; allow more processes, as `ulimit -u 4096` does"
    return None
