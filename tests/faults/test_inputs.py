"""Untrusted inputs are read, or refused with one sentence, without side effects.

Most inputs are valid files with some changed bytes. As a program, this module checks as
many inputs as its argument says, in little memory.
"""

import collections
import contextlib
import faulthandler
import functools
import gzip
import io
import json
import os
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import tensorstore
from helpers import ROOT, saved, tiny_config
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from benchmarks.drawn_digits import draw
from flaxmnist import config as configs
from flaxmnist.core import sharding
from flaxmnist.data import idx
from flaxmnist.errors import DamagedError, UserError
from flaxmnist.inference.saved_run import open_run
from flaxmnist.pictures.prepare import prepare
from flaxmnist.rundir import folder as workdirs
from flaxmnist.rundir.checkpoints import Checkpoints

ONE_SECOND = settings(
    max_examples=250,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
CONFIG = configs.make_config(num_steps=1)
NUMBERS = (0, 1, 2**7, 2**8 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1)


@functools.cache
def pictures():
    """A small digit in each format, by name."""
    gray = draw(5, "first hand", "plain").convert("L").resize((48, 40))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a digit"
    deep = Image.fromarray(np.asarray(gray, np.uint16) * 200)
    ways = {
        "png": (gray, {}),
        "png, 16 bits": (deep, {"format": "png"}),
        "png, palette": (gray.convert("P"), {"transparency": 3}),
        "png, RGBA": (gray.convert("RGBA"), {"exif": exif, "dpi": (72, 72)}),
        "jpeg": (gray, {"exif": exif}),
        "jpeg, progressive": (gray.convert("RGB"), {"progressive": True}),
        "gif": (gray, {"save_all": True, "append_images": [gray.rotate(9)]}),
        "bmp": (gray.convert("RGB"), {}),
        "tiff": (gray, {"save_all": True, "append_images": [gray]}),
        "tiff, LZW": (gray.convert("RGB"), {"compression": "tiff_lzw", "exif": exif}),
        "tiff, fax": (gray.convert("1"), {"compression": "group4"}),
        "tiff, float": (gray.convert("F"), {}),
        "webp": (gray.convert("RGBA"), {"exif": exif}),
        "webp, lossless": (gray.convert("RGB"), {"lossless": True}),
        "ppm": (gray, {}),
    }
    whole = {}
    for name, (image, options) in ways.items():
        file = io.BytesIO()
        image.save(file, **({"format": name.partition(",")[0]} | options))
        whole[name] = file.getvalue()
    return whole


@functools.cache
def idx_files():
    """Three images and their labels as IDX, by name."""
    images = np.arange(3 * 784).reshape(3, 28, 28).astype(np.uint8)
    whole = {}
    for name, array in (("images", images), ("labels", images[0, 0, :3])):
        header = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
        whole[name] = header + array.tobytes()
        whole[f"{name}.gz"] = gzip.compress(whole[name], mtime=0)
    return whole


def repaired(png):
    """Returns a PNG with valid checksums, so that its other errors are reached."""
    parts, at = [png[:8]], 8
    while at + 12 <= len(png):
        (size,) = struct.unpack(">I", png[at : at + 4])
        chunk = png[at + 4 : at + 8 + size]
        parts += [png[at : at + 4], chunk, struct.pack(">I", zlib.crc32(chunk))]
        at += 12 + size
    return b"".join(parts)


@st.composite
def damaged(draw, whole):
    """Name and content of one of the files `whole()`, changed in up to four places."""
    files = whole()
    name = draw(st.sampled_from(sorted(files)))
    content = bytearray(files[name])
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(content)))
        size = draw(st.integers(0, 40))
        match draw(st.sampled_from(["bit", "number", "end", "cut", "splice", "new"])):
            case "bit" if at < len(content):
                content[at] ^= 1 << size % 8
            case "number":
                number = draw(st.sampled_from(NUMBERS))
                order = draw(st.sampled_from("<>"))
                content[at : at + 4] = struct.pack(f"{order}I", number)
            case "end":
                del content[at:]
            case "cut":
                del content[at : at + size]
            case "splice":
                other = files[draw(st.sampled_from(sorted(files)))]
                start = draw(st.integers(0, len(other)))
                content[at : at + size] = other[start : start + size]
            case "new":
                content[at:at] = draw(st.binary(max_size=40))
    content = bytes(content)
    if name.startswith("png") and draw(st.booleans()):
        content = repaired(content)
    return name, content


def check_picture(file):
    _, content = file
    with warnings.catch_warnings():
        # Warnings of our own arithmetic; those of Pillow describe the file.
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            prepared = prepare(io.BytesIO(content))
        except UserError:
            return "refused"
    assert prepared.image.shape == (28, 28)
    assert prepared.image.dtype == np.uint8
    return "read"


def check_array(kind):
    height, width, channels, dtype, seed = kind
    array = np.random.default_rng(seed).random((height, width, channels)) ** 4
    top = np.iinfo(dtype).max if np.dtype(dtype).kind == "u" else 1
    prepared = prepare((array * top).astype(dtype))
    assert prepared.image.shape == (28, 28)
    return "read"


ARRAYS = st.tuples(
    *[st.integers(1, 60)] * 2,
    st.integers(1, 4),
    st.sampled_from(["u1", "u2", "u4", "f2", "f4", "f8", "bool"]),
    st.integers(0, 99),
)


def parsed(content, rank):
    """Returns the array of an IDX file, read independently; None if it is invalid."""
    dtypes = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
    ranks = (3, 4) if rank == 3 else (1, 2)
    if len(content) < 4 or content[:2] != b"\0\0" or content[3] not in ranks:
        return None
    head = struct.Struct(f">4B{content[3]}I")
    if content[2] not in dtypes or len(content) < head.size:
        return None
    shape, dtype = head.unpack(content[: head.size])[4:], np.dtype(dtypes[content[2]])
    sides = zip(shape[1:], (256, 256, 4), strict=False)
    if rank == 3 and not all(0 < side <= most for side, most in sides):
        return None
    if len(content) - head.size != np.prod(shape, dtype=object) * dtype.itemsize:
        return None
    return np.frombuffer(content, dtype, offset=head.size).reshape(shape)


def check_idx(folder, file):
    name, content = file
    path = Path(folder, f"file{Path(name).suffix}")
    path.write_bytes(content)
    rank = 3 if name.startswith("images") else 1
    try:
        plain = gzip.decompress(content) if name.endswith(".gz") else content
    except (OSError, EOFError, zlib.error):
        plain = b""
    expected = parsed(plain, rank)
    try:
        found = idx.read(path, idx.IMAGES if rank == 3 else idx.LABELS)
    except UserError:
        found = None
    if expected is None or found is None:
        assert found is expected
        return "refused"
    np.testing.assert_array_equal(found, expected)
    return "read"


@pytest.mark.parametrize("name", pictures())
def test_a_picture_of_each_format_is_read(name):
    assert check_picture((name, pictures()[name])) == "read"


def test_a_picture_with_extreme_values_is_prepared():
    values = np.tile(np.float32([0.2, 0.9, 3e38, -3e38]), (40, 7))
    assert prepare(Image.fromarray(values)).image.shape == (28, 28)


def test_decoding_a_picture_ends():
    jpeg = pictures()["jpeg, progressive"]
    last, end = jpeg.rfind(b"\xff\xda"), jpeg.rfind(b"\xff\xd9")
    scans = [jpeg[:end] + jpeg[last:end] * count + jpeg[end:] for count in (20, 100)]
    assert check_picture(("few", scans[0])) == "read"
    with pytest.raises(UserError, match="has more than 50 scans"):
        prepare(io.BytesIO(scans[1]))


@ONE_SECOND
@given(damaged(pictures))
def test_a_damaged_picture_is_read_or_refused(file):
    check_picture(file)


@ONE_SECOND
@given(ARRAYS)
def test_a_picture_of_any_shape_is_prepared(kind):
    check_array(kind)


@ONE_SECOND
@given(file=damaged(idx_files))
def test_a_damaged_idx_file_is_read_correctly_or_refused(tmp_path_factory, file):
    check_idx(tmp_path_factory.getbasetemp(), file)


LITERALS = (
    "(" * 900,
    "-" * 900 + "1",
    "9**9**9",
    "0x" + "f" * 990,
    "1e999",
    "[1," * 300,
)
LITERALS += ("{" * 300, "a" * 100_000, "\0", "\ud800", "((1,)*9)", "__import__('os')")
NAMES = ("seed", "log_every", "patience", "model.hidden", "model.name", "mesh.devices")
NAMES += ("optimizer.learning_rate", "data.name", "data.dir", "__class__", "data.items")


@ONE_SECOND
@given(st.sampled_from(NAMES), st.sampled_from(LITERALS) | st.text())
def test_an_override_is_accepted_or_refused(name, text):
    with contextlib.suppress(UserError):
        configs.override(CONFIG, [(name, text)])


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "9" * 5_000, '{"__class__": 1}', "[]"]
)
def test_a_run_with_an_invalid_configuration_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match="use another --workdir"):
        workdirs.saved_config(tmp_path)


@pytest.mark.parametrize("claim", ["shape", "chunks"])
def test_a_checkpoint_that_claims_too_much_memory_is_refused(
    tmp_path, mesh, claim, finished_run
):
    _, manifest = saved(tiny_config(), finished_run[0])
    everywhere = sharding.replicated(mesh)
    tree = {"state": {"params": {"bias": sharding.put(np.ones(8), everywhere)}}}
    abstract = sharding.abstract(lambda: tree, everywhere)
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(1, tree, manifest, None)
    store = tensorstore.KvStore.open(
        {"driver": "ocdbt", "base": f"file://{folder}/1/arrays/"}
    ).result()
    key = "state.params.bias/.zarray"
    described = json.loads(store[key]) | {claim: [2**40]}
    store[key] = json.dumps(described).encode()
    with (
        Checkpoints(folder, read_only=True) as checkpoints,
        pytest.raises(DamagedError, match=r"Requested shape|the chunks of"),
    ):
        checkpoints.restore(1, lambda manifest: abstract)


def test_a_model_that_is_larger_than_memory_is_not_allocated(finished_run, tmp_path):
    shutil.copytree(finished_run[0], tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    config = json.loads(path.read_text())
    config["model"]["hidden"] = [65_536] * 100
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match="GB of memory"):
        open_run(tmp_path / "run")


@pytest.mark.slow
def test_a_hundred_thousand_inputs_in_a_gigabyte():
    command = [sys.executable, __file__, "100000"]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=3600, env=environment
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr


def check_many(count, strategy, check):
    """Checks a number of inputs, each within 20 seconds; returns the outcomes."""
    found = collections.Counter()

    @settings(
        ONE_SECOND, max_examples=count, derandomize=False, phases=[Phase.generate]
    )
    @given(strategy)
    def run(value):
        faulthandler.dump_traceback_later(20, exit=True)
        found[check(value)] += 1

    run()
    faulthandler.cancel_dump_traceback_later()
    return dict(found)


def main(count):
    """Checks a number of inputs of all kinds, with a gigabyte of memory."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
    most = pages * resource.getpagesize() + (1 << 30)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    with tempfile.TemporaryDirectory() as folder:
        for name, share, strategy, check in (
            ("pictures", 0.5, damaged(pictures), check_picture),
            ("arrays", 0.1, ARRAYS, check_array),
            ("IDX", 0.4, damaged(idx_files), functools.partial(check_idx, folder)),
        ):
            found = check_many(round(share * count), strategy, check)
            print(f"{name}: {found}", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"at most {peak:.0f} MB")


if __name__ == "__main__":
    main(int(sys.argv[1]))
