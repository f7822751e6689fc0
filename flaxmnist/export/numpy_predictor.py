"""Predicts the classes of images with NumPy only.

python predict.py images.npy

`images.npy` holds images [count, height, width, channels], uint8 or floating point in
[0, 1]; the axis of a single channel may be missing. `weights.npz` and `labels.txt` are
in the directory of this script.
Prints a line per image: the name of the class and its probability. As a library:
`logits(load("weights.npz"), images)`.
"""

import json
import sys
from pathlib import Path

import numpy as np

ACTIVATIONS: dict = {
    "relu": lambda x: np.maximum(x, 0),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "softplus": lambda x: np.logaddexp(x, 0),
}


def load(path):
    """Returns the shape of an image, and the layers of each network of an ensemble.

    A layer has its kind, options and arrays. A single model is one network.
    """
    with np.load(path, allow_pickle=False) as file:
        networks = [
            [
                {
                    key: file[value[1:]] if str(value)[0] == "@" else value
                    for key, value in layer.items()
                }
                for layer in layers
            ]
            for layers in json.loads(str(file["networks"]))
        ]
        return tuple(file["image_shape"].tolist()), networks


def conv(x, layer):
    """Convolves [batch, height, width, channels]."""
    kernel, (sh, sw) = layer["kernel"], layer["strides"]
    padded = np.pad(x, ((0, 0), *layer["padding"], (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(
        padded, kernel.shape[:2], axis=(1, 2)
    )[:, ::sh, ::sw]
    return np.tensordot(windows, kernel, axes=((4, 5, 3), (0, 1, 2))) + layer["bias"]


def pool(x, layer):
    """Takes the maximum or the mean of squares, or of the whole image if size is 0."""
    down, across = [layer["size"]] * 2 if layer["size"] else x.shape[1:3]
    if layer["edge"]:  # Otherwise a remainder is dropped.
        missing = (0, -x.shape[1] % down), (0, -x.shape[2] % across)
        x = np.pad(x, ((0, 0), *missing, (0, 0)), "edge")
    batch, height, width, channels = x.shape
    rows, columns = height // down, width // across
    squares = x[:, : rows * down, : columns * across].reshape(
        batch, rows, down, columns, across, channels
    )
    return squares.max((2, 4)) if layer["name"] == "max" else squares.mean((2, 4))


def excite(x, layer):
    """Multiplies each channel by a factor computed from the means of all channels."""
    hidden = np.maximum(x.mean((1, 2)) @ layer["kernel0"] + layer["bias0"], 0)
    factors = hidden @ layer["kernel1"] + layer["bias1"]
    return x * ACTIVATIONS["sigmoid"](factors)[:, None, None]


LAYERS: dict = {
    "conv": conv,
    "pool": pool,
    "excite": excite,
    "residual": lambda x, layer: x + np.maximum(conv(x, layer), 0),
    "activation": lambda x, layer: ACTIVATIONS[layer["name"]](x),
    "affine": lambda x, layer: x * layer["scale"] + layer["shift"],
    "flatten": lambda x, layer: x.reshape(len(x), -1),
    "dense": lambda x, layer: x @ layer["kernel"] + layer["bias"],
}


def logits(model, images):
    """Returns [count, classes] for images [count, height, width, channels].

    Those of an ensemble are the logarithms of its mean probabilities, plus a constant
    per image: their energy is the mean of those of its networks.

    Raises:
      ValueError: the images are neither uint8 nor floating point in [0, 1], or have
        another shape.
    """
    shape, networks = model
    found = images.shape[1:] if images.ndim == 4 else (*images.shape[1:], 1)
    floating = np.issubdtype(images.dtype, np.floating)
    if not (floating or images.dtype == np.uint8) or found != shape:
        raise ValueError(
            f"images are {images.dtype} {images.shape}; expected uint8, or floating "
            f"point in [0, 1], (count, {', '.join(map(str, shape))})"
        )
    # Not a number is in no range.
    if floating and not ((images >= 0) & (images <= 1)).all():
        raise ValueError(
            f"images are {images.dtype} with values outside [0, 1]; divide by 255, or "
            "use uint8"
        )
    scores = [_scores(layers, images.reshape(-1, *shape)) for layers in networks]
    if len(scores) == 1:
        return scores[0]
    totals = [np.logaddexp.reduce(each, axis=1, keepdims=True) for each in scores]
    logs = [each - total for each, total in zip(scores, totals, strict=True)]
    return np.logaddexp.reduce(logs) - np.log(len(logs)) + np.mean(totals, axis=0)


def _scores(layers, images):
    rows = [np.zeros((0, len(layers[-1]["bias"])), np.float32)]
    # A convolution copies the windows of its inputs.
    count = max(1, 78_400 // images[0, ..., 0].size) if len(images) else 1
    for start in range(0, len(images), count):
        chunk = images[start : start + count]
        x = chunk.astype(np.float32) / (255 if chunk.dtype == np.uint8 else 1)
        for layer in layers:
            x = LAYERS[layer["kind"]](x, layer)
        rows.append(x)
    return np.concatenate(rows)


def main():
    """Prints the classes of the images in a file."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = Path(__file__).parent
    names = (folder / "labels.txt").read_text(encoding="utf-8").split("\n")
    try:
        # Unlike np.load, it takes only a .npy file.
        with open(sys.argv[1], "rb") as file:
            images = np.lib.format.read_array(file, allow_pickle=False)
        scores = logits(load(folder / "weights.npz"), images)
    except (OSError, ValueError) as error:
        sys.exit(f"{sys.argv[1]}: {error}")
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    for row in shares:
        print(f"{names[row.argmax()]}  {row.max():.1%}")


if __name__ == "__main__":
    main()
