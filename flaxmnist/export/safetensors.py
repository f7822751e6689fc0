"""Parameters in the format of safetensors, and the options of the model.

A file is the length of a header as 8 bytes, the header as JSON, and the arrays
(https://huggingface.co/docs/safetensors). Writing it needs no package.
"""

import json
import struct
from pathlib import Path, PurePath

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from flaxmnist.core.state import TrainState
from flaxmnist.errors import UserError
from flaxmnist.export.card import Card
from flaxmnist.export.parity import Logits

_DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "uint32": "U32",
    "uint8": "U8",
    "bool": "BOOL",
}
# The header is padded so that arrays can be mapped into memory.
_ALIGNMENT = 8


def _save(arrays: dict[str, np.ndarray], path: Path) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "flax"}}
    end = 0
    for name, array in arrays.items():
        start, end = end, end + array.nbytes
        header[name] = {
            "dtype": _DTYPES[array.dtype.name],
            "shape": array.shape,
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in arrays.values():
            file.write(array.tobytes())


def _load(path: Path) -> dict[str, np.ndarray]:
    content = memoryview(path.read_bytes())
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(bytes(content[8 : 8 + length]))
    del header["__metadata__"]
    names = {short: name for name, short in _DTYPES.items()}
    return {
        name: np.frombuffer(
            content[8 + length :][slice(*entry["data_offsets"])],
            jax.numpy.dtype(names[entry["dtype"]]),
        ).reshape(entry["shape"])
        for name, entry in header.items()
    }


def write(state: TrainState, folder: Path, card: Card) -> Logits:
    """Writes the variables of the model, and a description of it.

    Raises:
      UserError: a variable is not an array of numbers.
    """
    variables = {"params": state.eval_params, **state.model_state}
    leaves = {}
    for names, leaf in flatten_dict(variables).items():
        if dotted := [name for name in names if "." in name]:
            raise UserError(
                f"--format safetensors joins names by dots, and the module "
                f"{dotted[0]!r} contains one; use --format stablehlo"
            )
        leaves[".".join(names)] = leaf
    # The widest first, so that each array is aligned to its elements.
    order = sorted(leaves, key=lambda name: (-_width(name, leaves[name]), name))
    path = folder / "model.safetensors"
    _save({name: np.asarray(leaves[name]) for name in order}, path)
    data = card.dataset
    description = {
        # Without the directories of the user.
        "architecture": PurePath(card.architecture).name,
        "options": card.options,
        "image_shape": data.image_shape,
        "class_names": data.class_names,
        "members": card.members,
    }
    text = json.dumps(description, indent=2, ensure_ascii=False) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
    read = unflatten_dict(_load(path), sep=".")
    apply = jax.jit(lambda images: state.model.apply(read, images, train=False))
    return lambda images: np.asarray(apply(images))


def _width(name: str, leaf: object) -> int:
    """Returns the bytes of an element; raises UserError if it is not a number."""
    dtype = getattr(leaf, "dtype", None)
    if getattr(dtype, "name", None) not in _DTYPES:
        raise UserError(
            f"--format safetensors stores arrays of numbers, not {name}, which is "
            f"{dtype or type(leaf).__name__}; use --format stablehlo"
        )
    return np.dtype(dtype).itemsize
