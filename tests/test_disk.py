"""Data that is larger than memory: it stays on disk."""

import math
import struct
from pathlib import Path

import numpy as np
import pytest
from test_data import NAMES, write_idx

from flaxmnist import data
from flaxmnist.data import HostFeed


def test_files_that_are_not_gzipped_stay_on_disk(tmp_path, mesh):
    write_idx(tmp_path / "raw")
    write_idx(tmp_path / "packed", compress=True)
    raw, packed = (
        data.load("mnist", "idx", str(tmp_path / kind)) for kind in ("raw", "packed")
    )
    assert raw.fingerprint == packed.fingerprint
    assert isinstance(raw.train.images, np.memmap)
    assert raw.train.images.base is raw.validation.images.base
    batches = [
        next(HostFeed(dataset.train, 5, mesh, seed).spans(0, 4))[0].at(3)
        for dataset in (raw, packed)
        for seed in (None, 7)
    ]
    for name in ("image", "label"):
        for one, other in zip(batches[:2], batches[2:], strict=True):
            np.testing.assert_array_equal(one[name], other[name])


def anonymous_megabytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if "RssAnon" in line)


@pytest.mark.slow
def test_four_gigabytes_on_disk_take_little_memory(tmp_path, mesh):
    count = 5_600_000
    for name, size in zip(NAMES, (count, count, 12, 12), strict=True):
        shape = (size, 28, 28) if "images" in name else (size,)
        with (tmp_path / name).open("wb") as file:
            file.write(struct.pack(f">4B{len(shape)}I", 0, 0, 8, len(shape), *shape))
            file.truncate(file.tell() + math.prod(shape))
    before = most = anonymous_megabytes()
    dataset = data.load("mnist", "idx", str(tmp_path))
    assert dataset.fingerprint
    feed = HostFeed(dataset.train, 1_000, mesh, seed=0)
    for each, steps in ((feed, 3_000), (feed.in_order(1_000), 5_134)):
        for _ in each.spans(0, steps):
            most = max(most, anonymous_megabytes())
    print(f"{most - before:.0f} MB")
    # The order of two epochs, of the pass, and what it takes to draw them.
    assert most - before < 200
