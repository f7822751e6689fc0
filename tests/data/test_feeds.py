"""Data that is larger than memory: it stays on disk."""

import errno
import math
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from helpers import NAMES, write_idx

from flaxmnist import data
from flaxmnist.data import DeviceFeed, HostFeed, feeds, idx, rows
from flaxmnist.errors import UserError
from flaxmnist.runtime import memory


@pytest.fixture
def any_size(monkeypatch):
    """Files of any size are large: raw ones stay on disk."""
    monkeypatch.setattr(idx, "MAX_IN_MEMORY", 0)


def test_files_that_are_not_gzipped_stay_on_disk(tmp_path, mesh, any_size):
    write_idx(tmp_path / "raw")
    write_idx(tmp_path / "packed", compress=True)
    raw, packed = (
        data.load("mnist", "idx", str(tmp_path / kind)) for kind in ("raw", "packed")
    )
    assert raw.fingerprint == packed.fingerprint
    assert isinstance(raw.train.images, np.memmap)
    assert raw.train.images.base is raw.validation.images.base
    batches = [
        next(HostFeed(dataset.train, 5, mesh, seed).chunks(0, 4))[0].at(3)
        for dataset in (raw, packed)
        for seed in (None, 7)
    ]
    for name in ("image", "label"):
        for one, other in zip(batches[:2], batches[2:], strict=True):
            np.testing.assert_array_equal(one[name], other[name])


def test_a_raw_file_that_does_not_fit_into_memory_stays_on_disk(tmp_path, monkeypatch):
    write_idx(tmp_path / "raw")
    write_idx(tmp_path / "packed", compress=True)
    monkeypatch.setattr(idx, "available_memory", lambda: 100)
    raw = data.load("mnist", "idx", str(tmp_path / "raw"))
    assert isinstance(raw.train.images, np.memmap)
    with pytest.raises(UserError, match=r"100 are available\. Unpack it with gunzip"):
        data.load("mnist", "idx", str(tmp_path / "packed"))


def test_a_file_that_becomes_shorter_before_its_use_is_reported(
    tmp_path, mesh, any_size
):
    write_idx(tmp_path, counts=(24_000, 12))
    dataset = data.load("mnist", "idx", str(tmp_path))
    os.truncate(tmp_path / NAMES[0], 1_000_000)
    with pytest.raises(UserError, match="became shorter"):
        _ = dataset.fingerprints
    with pytest.raises(UserError, match="became shorter"):
        DeviceFeed(dataset.train, 1_000, mesh, 0)


@pytest.mark.parametrize("seed", [None, 0])
def test_a_file_that_becomes_shorter_in_use_is_reported(tmp_path, mesh, any_size, seed):
    write_idx(tmp_path, counts=(24_000, 12))
    train = data.load("mnist", "idx", str(tmp_path)).train
    slabs = HostFeed(train, 1_000, mesh, seed).chunks(0, 100)
    next(slabs)
    # Reading what follows in memory that is mapped to the file ends the process.
    os.truncate(tmp_path / NAMES[0], 1_000_000)
    with pytest.raises(UserError, match=r"ubyte' became shorter while it was in use"):
        list(slabs)


def test_a_disk_that_fails_in_use_is_reported(tmp_path, mesh, any_size, monkeypatch):
    write_idx(tmp_path)
    train = data.load("mnist", "idx", str(tmp_path)).train
    feed = HostFeed(train, 5, mesh, 0)

    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(UserError, match=r"ubyte' cannot be read \(Input/output error"):
        list(feed.chunks(0, 1))


def test_a_small_file_is_not_needed_any_more(tmp_path, mesh):
    images, *_ = write_idx(tmp_path)
    dataset = data.load("mnist", "idx", str(tmp_path))
    os.truncate(tmp_path / NAMES[0], 0)
    np.testing.assert_array_equal(dataset.train.images, images[2:])


def test_data_that_does_not_fit_the_devices_is_refused(synthetic, mesh, monkeypatch):
    needed = 788 * len(synthetic.train)
    monkeypatch.setattr(feeds, "available_memory", lambda: needed)
    with pytest.raises(UserError, match=r"set data\.placement=host"):
        DeviceFeed(synthetic.train, 80, mesh, seed=0)
    next(HostFeed(synthetic.train, 80, mesh, seed=0).chunks(0, 1))
    monkeypatch.setattr(feeds, "available_memory", lambda: 2 * needed)
    next(DeviceFeed(synthetic.train, 80, mesh, seed=0).chunks(0, 1))
    splits = {name: synthetic.split(name) for name in data.SPLITS}
    with pytest.raises(UserError, match=r"3,000 images need .* set data\.placement"):
        DeviceFeed.in_order(splits, 80, mesh)


def test_a_cpu_uses_joined_splits_without_a_copy(synthetic, mesh, monkeypatch):
    made = []

    def joined(arrays):
        made.append(rows.joined(arrays))
        return made[-1]

    monkeypatch.setattr(feeds, "joined", joined)
    splits = {name: synthetic.split(name) for name in ("train", "test")}
    batches, _ = next(DeviceFeed.in_order(splits, 80, mesh)["test"].chunks(0, 1))
    assert np.shares_memory(np.asarray(batches.images), made[0])


def test_a_feed_does_not_follow_changes_of_the_users_array(mesh):
    memory = np.zeros(64 * 16 + rows.ALIGNMENT, np.uint8)
    # A CPU device would use an aligned array without a copy.
    images = memory[-memory.ctypes.data % rows.ALIGNMENT :][: 64 * 16].reshape(64, 4, 4)
    split = data.Split(images, np.arange(64) % 2)
    feed, in_order = (
        DeviceFeed(split, 8, mesh),
        DeviceFeed.in_order({"test": split}, 8, mesh)["test"],
    )
    images[:] = 1
    for each in (feed, in_order):
        batches, _ = next(each.chunks(0, 1))
        assert not np.asarray(batches.at(0)["image"]).any()


@pytest.mark.parametrize("version", ["", "memory"])
def test_a_control_group_limits_memory(tmp_path, monkeypatch, version):
    folder, limit, usage, prefix = memory._VERSIONS[version]
    for name, content in (
        (limit, "5000000"),
        (usage, "4000000"),
        ("memory.stat", f"anon 1\n{prefix}active_file 100\n{prefix}inactive_file 20\n"),
    ):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).write_text(content)
    groups = tmp_path / "cgroup"
    groups.write_text(f"9:name=systemd:/\n4:{version}:/a/b\n")
    monkeypatch.setattr(memory, "_ROOT", tmp_path)
    monkeypatch.setattr(memory, "_OWN", groups)
    assert memory.available_memory() == 1_000_120


def anonymous_megabytes():
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if "RssAnon" in line)


@pytest.mark.slow
def test_four_gigabytes_on_disk_take_little_memory(tmp_path, mesh):
    count = 5_600_000
    for name, size in zip(NAMES, (count, count, 12, 12), strict=True):
        shape = (size, 28, 28) if "images" in name else (size,)
        with (tmp_path / name).open("wb") as file:
            file.write(struct.pack(f">4B{len(shape)}I", 0, 0, 8, len(shape), *shape))
            file.truncate(file.tell() + math.prod(shape))
            # The last byte of the labels, too: there must be two classes or more.
            file.seek(-1, os.SEEK_END)
            file.write(b"\1")
    before = most = anonymous_megabytes()
    dataset = data.load("mnist", "idx", str(tmp_path))
    assert dataset.fingerprint
    feed = HostFeed(dataset.train, 1_000, mesh, seed=0)
    in_order = HostFeed(dataset.train, 1_000, mesh)
    for each, steps in ((feed, 3_000), (in_order, 5_134)):
        for _ in each.chunks(0, steps):
            most = max(most, anonymous_megabytes())
    print(f"{most - before:.0f} MB")
    # The order of two epochs, of the pass, and what it takes to draw them.
    assert most - before < 200
