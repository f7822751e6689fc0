"""Where images come from, the splits, and the order they are seen in."""

import contextlib
import functools
import gzip
import hashlib
import http.server
import importlib.util
import json
import shutil
import struct
import sys
import threading
import time
import tracemalloc
import types
import zlib
from unittest import mock

import jax
import numpy as np
import pytest
from helpers import NAMES, save_idx, write_idx, write_prepared

from flaxmnist import data
from flaxmnist.core import sharding
from flaxmnist.data import (
    DeviceFeed,
    HostFeed,
    download,
    epoch_order,
    feeds,
    idx,
    rows,
    tfds,
)
from flaxmnist.errors import UserError
from flaxmnist.runtime import files as caches

ORDER_CRC = 3848404746


def test_a_gzipped_file_is_not_unpacked_beyond_a_gigabyte(tmp_path):
    path = tmp_path / "images.gz"
    header = struct.pack(">4B3I", 0, 0, 8, 3, 2**31, 28, 28)
    path.write_bytes(gzip.compress(header + bytes(1 << 20)))
    with pytest.raises(UserError, match="1,683,627,180,032 bytes; expected at most"):
        idx.read(path)
    # What is announced is less than what comes: no more than that is unpacked.
    header = struct.pack(">4B3I", 0, 0, 8, 3, 1, 28, 28)
    path.write_bytes(gzip.compress(header + bytes(1 << 28), 1))
    tracemalloc.start()
    with pytest.raises(UserError, match="contains more bytes of data"):
        idx.read(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("compress", [False, True])
def test_splits_of_idx_files_are_joined_without_a_copy(
    tmp_path, mesh, monkeypatch, compress
):
    arrays = write_idx(tmp_path, counts=(24, 6), compress=compress)
    dataset = data.load("mnist", "idx", str(tmp_path))
    made = []

    def joined(parts):
        made.append(rows.joined(parts))
        return made[-1]

    monkeypatch.setattr(feeds, "joined", joined)
    splits = {name: dataset.split(name) for name in data.SPLITS}
    DeviceFeed.in_order(splits, 6, mesh)
    (whole,) = made
    pixels = np.concatenate([arrays[0], arrays[2]]).reshape(len(whole), -1)
    np.testing.assert_array_equal(whole, pixels)
    for split in splits.values():
        assert np.shares_memory(whole, split.images)
        with pytest.raises(ValueError, match="read-only"):
            split.images[0] = 0
    others = rows.joined([splits["test"].images, splits["train"].images])
    assert not np.shares_memory(others, whole)
    np.testing.assert_array_equal(others, np.concatenate([arrays[2], arrays[0][2:]]))
    for part in (whole[::2], whole[::-1], whole[:, :300]):
        np.testing.assert_array_equal(rows.joined([part]), part)


def test_a_command_unpacks_a_file_once_and_notices_damage(tmp_path, monkeypatch):
    monkeypatch.setattr(caches, "cache_enabled", True)
    monkeypatch.setattr(idx, "MIN_CACHED_BYTES", 64)
    path, images = tmp_path / "images.gz", np.arange(4 * 49, dtype=np.uint8)

    def content(images):
        return idx._header(images.dtype, images.shape) + images.tobytes()

    def write(images):
        path.write_bytes(gzip.compress(content(images)))

    def unpack(*_):
        raise AssertionError

    images = images.reshape(4, 7, 7)
    write(images)
    np.testing.assert_array_equal(idx.read(path), images)
    (kept,) = (caches.cache_dir() / "unpacked").iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(idx, "_unpack", unpack)
        np.testing.assert_array_equal(idx.read(path), images)
    whole = kept.read_bytes()
    for damaged in (whole[:-1], whole[:20] + b"\xff" + whole[21:], b""):
        kept.write_bytes(damaged)
        np.testing.assert_array_equal(idx.read(path), images)
        assert kept.read_bytes() == whole
    write(images + np.uint8(1))
    np.testing.assert_array_equal(idx.read(path), images + np.uint8(1))
    parts = gzip.compress(content(images)[:50])
    path.write_bytes(parts + gzip.compress(content(images)[50:]))
    np.testing.assert_array_equal(idx.read(path), images)
    assert len([*kept.parent.iterdir()]) == 2
    monkeypatch.setattr(caches, "cache_enabled", False)
    write(images + np.uint8(2))
    np.testing.assert_array_equal(idx.read(path), images + np.uint8(2))
    assert len([*kept.parent.iterdir()]) == 2


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("dotted", [False, True])
@pytest.mark.parametrize("inside", ["", "MNIST/raw", "raw", "mnist"])
def test_idx_files_in_every_spelling(tmp_path, compress, dotted, inside):
    names = [name.replace("-idx", ".idx") for name in NAMES] if dotted else NAMES
    arrays = write_idx(tmp_path / inside, names, compress=compress)
    dataset = data.load("mnist", "idx", str(tmp_path))
    # The first twelfth is for validation, as the tutorials hold out 5,000 of 60,000.
    np.testing.assert_array_equal(dataset.validation.images, arrays[0][:2])
    np.testing.assert_array_equal(dataset.train.images, arrays[0][2:])
    np.testing.assert_array_equal(dataset.train.labels, arrays[1][2:])
    np.testing.assert_array_equal(dataset.test.images, arrays[2])


def test_a_directory_of_torchvision_names_the_data(tmp_path):
    for name in ("FashionMNIST", "KMNIST"):
        write_idx(tmp_path / name / "raw")
    assert data.load(dir=tmp_path / "KMNIST").name == "kmnist"
    assert data.load(dir=tmp_path / "FashionMNIST" / "raw").name == "fashion_mnist"
    with pytest.raises(UserError, match="contains fashion_mnist, kmnist, not mnist"):
        data.load(dir=tmp_path)


@pytest.mark.parametrize("labels", [np.arange(240) // 24, np.arange(240) // 120])
def test_sorted_data_is_split_by_class(tmp_path, labels):
    labels = labels.astype(np.uint8)
    images = np.arange(240 * 196, dtype=np.uint32).view(np.uint8).reshape(240, 28, 28)
    save_idx(tmp_path, [images, labels, images[:9], labels[:9]])
    dataset = data.load("mnist", "idx", str(tmp_path))
    assert "the validation split is drawn from each class" in dataset.warning
    train, validation = dataset.train, dataset.validation
    assert dataset.counts == {"train": 220, "validation": 20, "test": 9}
    twelfth = np.bincount(labels) / 12
    assert np.abs(np.bincount(validation.labels) - twelfth).max() < 1
    # Each example is in one of them, with its own label.
    found = {
        image.tobytes(): label
        for split in (train, validation)
        for image, label in zip(split.images, split.labels, strict=True)
    }
    assert found == {
        image.tobytes(): label for image, label in zip(images, labels, strict=True)
    }


def test_the_licence_is_that_of_the_published_files(tmp_path):
    write_idx(tmp_path)
    assert data.load("mnist", "idx", str(tmp_path)).licence is None
    assert "CC BY-SA 3.0" in data.load("mnist", "bundled").licence


@pytest.fixture
def gzipped_dir(mnist_dir):
    """The folder of the original MNIST files as they are published."""
    if not all((mnist_dir / f"{name}.gz").exists() for name in NAMES):
        pytest.skip("needs the gzipped files of MNIST in FLAXMNIST_DATA_DIR")
    return mnist_dir


def test_mnist_has_its_licence_however_it_is_stored(gzipped_dir, tmp_path):
    assert "CC BY-SA 3.0" in data.load("mnist", "idx", str(gzipped_dir)).licence
    for name in NAMES:
        packed = (gzipped_dir / f"{name}.gz").read_bytes()
        (tmp_path / name).write_bytes(gzip.decompress(packed))
    dataset = data.load("mnist", "idx", str(tmp_path))
    assert "CC BY-SA 3.0" in dataset.licence
    drawn = data.load("mnist", "idx", str(tmp_path), split_seed=1)
    assert "CC BY-SA 3.0" in drawn.licence
    with pytest.raises(UserError, match="belongs to mnist, not to kmnist"):
        data.load("kmnist", "idx", str(tmp_path))


def test_mnist_has_the_tutorials_splits(mnist_dir):
    dataset = data.load("mnist", "idx", str(mnist_dir))
    assert dataset.counts == {"train": 55_000, "validation": 5_000, "test": 10_000}
    assert list(dataset.validation.labels[:5]) == [5, 0, 4, 1, 9]
    assert list(dataset.test.labels[:5]) == [7, 2, 1, 0, 4]
    assert dataset.warning is None


def test_a_folder_of_another_set_is_refused(mnist_dir):
    with pytest.raises(UserError, match="belongs to mnist, not to fashion_mnist"):
        data.load("fashion_mnist", "idx", str(mnist_dir))


def test_the_bundled_subset_is_stratified_and_fixed():
    dataset = data.load("mnist", "bundled")
    for split, each in (("train", 400), ("validation", 50), ("test", 50)):
        labels = getattr(dataset, split).labels
        np.testing.assert_array_equal(np.bincount(labels), [each] * 10)
        assert (np.diff(labels.astype(int)) != 0).mean() > 0.8  # Not sorted by class.
    images = np.concatenate([dataset.train.images, dataset.test.images])
    assert len(np.unique(images.reshape(-1, 784), axis=0)) == 4_500
    assert dataset.fingerprint == data.load("mnist", "bundled").fingerprint


@pytest.mark.parametrize("source", ["bundled", "synthetic"])
def test_built_in_data_refuse_another_validation_split(source):
    said = r"validation_share=0\.2 has no effect .* has its validation split already"
    with pytest.raises(UserError, match=said):
        data.load("mnist", source, validation_share=0.2)


@pytest.mark.parametrize(
    ("write", "source"), [(write_idx, "idx"), (write_prepared, "tfds")]
)
def test_a_seed_draws_other_examples_of_published_files(tmp_path, write, source):
    write(tmp_path)
    first, drawn = (
        data.load("mnist", source, tmp_path, split_seed=seed) for seed in (0, 1)
    )
    assert drawn.counts == first.counts
    assert drawn.fingerprints["test"] == first.fingerprints["test"]
    assert drawn.fingerprints["validation"] != first.fingerprints["validation"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"name": None}, "data.name=None: expected a text"),
        ({"source": ["idx"]}, r"data.source=\['idx'\] is unknown"),
        ({"source": "idxs"}, "data.source='idxs' is unknown; did you mean 'idx'"),
        ({"dir": 0 == 0}, "data.dir=True: expected a directory or a file, or None"),
    ],
)
def test_nonsense_given_to_load_is_refused_by_name(wrong, said):
    with pytest.raises(UserError, match=said):
        data.load(**wrong)


def test_a_folder_may_be_a_path(tmp_path):
    write_idx(tmp_path)
    assert len(data.load("mnist", "idx", tmp_path).train) == 22


IMAGES, LABELS = np.zeros((4, 28, 28), np.uint8), np.arange(4)


@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        (IMAGES, LABELS - 1, "label -1 of example 0; expected labels from 0 to 999"),
        (IMAGES, LABELS + 997, "label 1000 of example 3; expected labels from 0 to"),
        (IMAGES, LABELS / 1, r"labels is float64 \[4\]; expected integers \[count\]"),
        (IMAGES, list(LABELS), "labels is a list; expected a NumPy array"),
        (IMAGES, LABELS[:3], r"images is uint8 \[4, 28, 28\]; expected uint8 \[3, h"),
        # The host path would round them to black.
        (IMAGES / 255, LABELS, r"images is float64 \[4, 28, 28\]; expected uint8"),
    ],
)
def test_a_split_of_other_arrays_is_refused(images, labels, said):
    with pytest.raises(UserError, match=said):
        data.Split(images, labels)


@pytest.mark.parametrize("feed", [DeviceFeed, HostFeed])
def test_nonsense_given_to_a_feed_is_refused_by_name(feed, mesh):
    split = data.Split(IMAGES, LABELS)
    two = sharding.make_mesh(2)
    for args, said in (
        ((split, 0, mesh), "batch_size=0: expected a whole number, 1 or more"),
        ((split, 2.5, mesh, 0), "batch_size=2.5: expected a whole number"),
        ((split, 2, mesh, -1), "seed=-1: expected a whole number, 0 or more"),
        (
            (LABELS, 2, mesh),
            "split is a ndarray: expected a Split, such",
        ),
        ((split, 2, "data"), r"mesh='data': expected one of sharding.make_mesh\(\)"),
        ((split, 3, two), "batch_size=3: expected a multiple of 2, the size of the me"),
        ((split, 5, mesh, 0), "the split has 4 examples: expected at least 5, one ba"),
        ((data.Split(IMAGES[:0], LABELS[:0]), 5, mesh), "has 0 examples: expected at"),
    ):
        with pytest.raises(UserError, match=said):
            feed(*args)
    with pytest.raises(UserError, match="mesh=None: expected one of"):
        feed.in_order({"test": split}, 2, None)
    # As in a configuration, 2.0 is 2.
    (batches, count), *_ = feed(split, 2.0, mesh, np.int64(0)).chunks(0, 2)
    assert (count, batches.at(0)["label"].shape) == (2, (2,))


# The order of the data.


def test_the_order_is_a_permutation_and_never_changes():
    order = epoch_order(seed=0, epoch=0, count=55_000)
    np.testing.assert_array_equal(np.sort(order), np.arange(55_000))
    assert zlib.crc32(order) == ORDER_CRC
    for seed, epoch in ((0, 1), (1, 0)):
        assert (epoch_order(seed, epoch, 55_000) == order).mean() < 0.001


@pytest.mark.parametrize("devices", [1, 8])
def test_host_and_device_yield_the_same_batches(synthetic, monkeypatch, devices):
    monkeypatch.setattr("flaxmnist.data.feeds.SLAB_BYTES", 784 * 80 * 7)
    mesh = sharding.make_mesh(devices)
    feeds = [feed(synthetic.train, 80, mesh, seed=5) for feed in (DeviceFeed, HostFeed)]
    seen = []
    for feed in feeds:
        assert feed.steps_per_epoch == 25
        step, batches = 3, []
        for span, count in feed.chunks(3, 61):  # Into the third epoch.
            batches += [span.at(step + offset) for offset in range(count)]
            step += count
        seen.append(batches)
    assert len(seen[0]) == len(seen[1]) == 58
    for one, other in zip(*seen, strict=True):
        for name in ("image", "label", "mask"):
            np.testing.assert_array_equal(one[name], other[name])
    order = epoch_order(5, 0, 2_000)[3 * 80 : 4 * 80]
    np.testing.assert_array_equal(seen[0][0]["label"], synthetic.train.labels[order])
    np.testing.assert_array_equal(
        seen[0][0]["image"][..., 0], synthetic.train.images[order]
    )


@pytest.mark.parametrize("feed", [DeviceFeed, HostFeed])
def test_splits_in_order_have_arrays_of_one_shape(synthetic, mesh, feed):
    splits = {name: synthetic.split(name) for name in data.SPLITS}
    # Gray images may have a channel, or none.
    test = data.Split(synthetic.test.images[..., None], synthetic.test.labels)
    splits["test"] = test
    feeds, shapes = feed.in_order(splits, 300, mesh), set()
    assert len({each.steps_per_epoch for each in feeds.values()}) > 1
    for name, split in splits.items():
        step, seen = 0, []
        # Two passes.
        for batches, count in feeds[name].chunks(0, 2 * feeds[name].steps_per_epoch):
            shapes.add(str(jax.tree.map(np.shape, batches)))
            seen += [batches.at(step + offset) for offset in range(count)]
            step += count
        for key, expected in (("image", split.images), ("label", split.labels)):
            found = np.concatenate([batch[key][batch["mask"]] for batch in seen])
            twice = np.concatenate([expected, expected])
            np.testing.assert_array_equal(found.squeeze(), twice.squeeze())
    assert len(shapes) == 1
    one, other = (
        next(shuffled.chunks(30, 31))[0].at(30)
        for shuffled in (
            feeds["train"].shuffled(80, 5),
            feed(synthetic.train, 80, mesh, 5),
        )
    )
    jax.tree.map(np.testing.assert_array_equal, one, other)


# Downloads, from a server on this machine.


def drip(write):
    """Sends a byte now and then, until nobody listens."""
    with contextlib.suppress(OSError):
        while True:
            write(b"x")
            time.sleep(0.01)


class Server(http.server.ThreadingHTTPServer):
    """Serves files, as its `behaviour` says: whole, slow, cut or wrong."""

    def __init__(self, folder, behaviour):
        self.behaviour, self.requests = behaviour, []
        super().__init__(("127.0.0.1", 0), functools.partial(Handler, directory=folder))


class Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        if self.server.behaviour == "headers drip":
            drip(self.wfile.write)
        elif self.server.behaviour == "garbage":
            self.wfile.write(b"garbage\r\n\r\n")
        else:
            super().do_GET()

    def copyfile(self, source, outputfile):
        content, behaviour = source.read(), self.server.behaviour
        if behaviour == "drips":
            drip(outputfile.write)
        self.server.requests.append(self.path)
        if behaviour == "wrong":
            content = bytes(len(content))
        if behaviour == "cut":
            content = content[: len(content) // 2]
        parts = 3 if behaviour == "slow" else 1
        size = -(-len(content) // parts)
        for start in range(0, len(content), size):
            outputfile.write(content[start : start + size])
            outputfile.flush()
            time.sleep(0.1 if behaviour == "slow" else 0)

    def log_message(self, *args):
        pass


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """Starts a server of files and registers them, as TFDS registers its own."""
    servers = []

    def start(folder, behaviour="whole"):
        server = Server(folder, behaviour)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        package = tmp_path / "package"
        (package / "url_checksums").mkdir(parents=True, exist_ok=True)
        lines = []
        for name in sorted(path.name for path in folder.iterdir()):
            content = (folder / name).read_bytes()
            url = f"http://127.0.0.1:{server.server_port}/{name}"
            digest = hashlib.sha256(content).hexdigest()
            lines.append(f"{url}\t{len(content)}\t{digest}\t{name}\n")
        (package / "url_checksums" / "mnist.txt").write_text("".join(lines))
        monkeypatch.setattr(
            download,
            "package_folder",
            lambda name, real=download.package_folder: (
                package if name == "tensorflow_datasets" else real(name)
            ),
        )
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def files(tmp_path):
    write_idx(tmp_path / "served", compress=True)
    return tmp_path / "served"


@pytest.mark.parametrize("behaviour", ["whole", "slow"])
def test_a_download_is_checked_cached_and_not_repeated(serve, files, behaviour):
    server = serve(files, behaviour)
    first = data.load("mnist", "tfds")
    assert len(server.requests) == 4
    assert data.load("mnist", "auto").fingerprint == first.fingerprint
    assert len(server.requests) == 4
    assert first.counts == {"train": 22, "validation": 2, "test": 12}


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [("cut", "returned .* bytes; expected"), ("wrong", "has the SHA-256")],
)
def test_a_bad_download_is_never_taken_for_a_file(serve, files, behaviour, said):
    server = serve(files, behaviour)
    with pytest.raises(UserError, match=said):
        data.load("mnist", "tfds")
    assert list((download.cache_dir() / "mnist").iterdir()) == []
    dataset = data.load("mnist", "auto")
    assert dataset.source == "bundled"
    assert "BUNDLED SUBSET" in dataset.warning
    server.behaviour = "whole"
    assert data.load("mnist", "auto").counts["train"] == 22


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        ("drips", "slower than 10,000 bytes per second"),
        ("headers drip", "no answer within 0.3 s"),
        ("garbage", "failed after 0 of"),
    ],
)
def test_a_server_that_never_ends_is_given_up(
    serve, files, monkeypatch, behaviour, said
):
    monkeypatch.setattr(download, "RATE_SECONDS", 0.1)
    # The other servers must answer in time, however busy this machine is.
    if behaviour == "headers drip":
        monkeypatch.setattr(download, "STALL_SECONDS", 0.3)
    serve(files, behaviour)
    with pytest.raises(UserError, match=said):
        data.load("mnist", "tfds")
    assert list((download.cache_dir() / "mnist").iterdir()) == []


def test_a_cached_file_that_changed_is_fetched_again(serve, files):
    server = serve(files)
    data.load("mnist", "tfds")
    cached = download.cache_dir() / "mnist" / f"{NAMES[1]}.gz"
    cached.write_bytes(cached.read_bytes()[:-1])
    data.load("mnist", "auto")
    assert server.requests[4:] == [f"/{NAMES[1]}.gz"]


def test_without_a_network_only_auto_falls_back(serve, files):
    server = serve(files)
    server.shutdown()
    server.server_close()
    begin = time.monotonic()
    assert data.load("mnist", "auto").source == "bundled"
    assert time.monotonic() - begin < 10
    with pytest.raises(UserError, match="cannot be reached"):
        data.load("mnist", "tfds")
    with pytest.raises(UserError, match="cannot be reached"):
        data.load("mnist", "auto", validation_share=0.2)
    with pytest.raises(UserError, match=r"no train-images"):
        data.load("mnist", "auto", str(files.parent))


def test_the_real_files_through_a_download(serve, gzipped_dir, tmp_path):
    given = data.load("mnist", "idx", str(gzipped_dir))
    folder = tmp_path / "real"
    folder.mkdir()
    for path in gzipped_dir.glob("*-ubyte.gz"):
        shutil.copyfile(path, folder / path.name)
    real = {resource.name: resource.sha256 for resource in download.registered("mnist")}
    serve(folder)
    served = {
        resource.name: resource.sha256 for resource in download.registered("mnist")
    }
    assert served == real
    dataset = data.load("mnist", "tfds")
    assert dataset.fingerprint == given.fingerprint
    drawn = data.load("mnist", "tfds", validation_share=0.1)
    assert dataset.licence == drawn.licence == given.licence


# TensorFlow Datasets.


def test_sets_outside_the_family_say_what_they_need(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name, *rest: None if name == "tensorflow" else find(name, *rest),
    )
    # Where Protobuf is older than TensorFlow Datasets' code, as in Colab, that is said.
    advice = r"pip install '(flaxmnist\[tfds\]|tensorflow-metadata<1.18)'"
    with pytest.raises(UserError, match=advice):
        data.load("emnist", "tfds")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("BuilderConfig foo not found.\n['a']"), r"not found. \['a'\]\)"),
        (AssertionError("Manual directory x is empty"), "Manual directory x is empty"),
        (ConnectionError(), r"\(ConnectionError\)"),
        (UserError("data.name='x' has images of"), "^data.name='x' has images of"),
    ],
)
@pytest.mark.parametrize("method", ["builder", "download_and_prepare"])
def test_a_set_that_cannot_be_prepared_is_an_error_of_the_user(
    monkeypatch, method, error, said
):
    image = types.SimpleNamespace(shape=(8, 8, 1))
    features = {"image": image, "label": types.SimpleNamespace(num_classes=2)}
    stub = mock.MagicMock()
    stub.list_builders.return_value = ["runes"]
    stub.builder.return_value.info.features = features
    stub.builder.return_value.download_and_prepare.side_effect = error
    if method == "builder":
        stub.builder.side_effect = error
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", stub)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr(tfds.download, "registered", lambda name: [stub])
    monkeypatch.setattr(tfds.download, "reachable", lambda url: True)
    with pytest.raises(UserError, match=said):
        data.load("runes/foo", "tfds")


def test_prepared_sets_are_found_by_format_and_version(tmp_path):
    for version, file_format in (
        ("3.0.1", "array_record"),
        ("10.0.0", "array_record"),
        ("11.0.0", "tfrecord"),
    ):
        folder = tmp_path / "mnist" / version
        folder.mkdir(parents=True)
        info = {"name": "mnist", "fileFormat": file_format}
        (folder / "dataset_info.json").write_text(json.dumps(info))
    assert tfds.prepared("mnist", str(tmp_path)) == tmp_path / "mnist" / "10.0.0"
    assert tfds.prepared("kmnist", str(tmp_path)) is None
    (tmp_path / "mnist").rename(tmp_path / "runes")
    shutil.rmtree(tmp_path / "runes" / "3.0.1")
    shutil.rmtree(tmp_path / "runes" / "10.0.0")
    said = "as 'tfrecord' in .*runes/11.0.0'; expected array_record. To prepare it"
    for source in ("tfds", "auto"):
        with pytest.raises(UserError, match=said):
            data.load("runes", source, tmp_path)


def test_a_prepared_set_is_read_without_tensorflow_and_cached(tmp_path, monkeypatch):
    train, test = write_prepared(tmp_path)
    dataset = data.load("mnist", "tfds", str(tmp_path))
    np.testing.assert_array_equal(dataset.train.images, train[2:])
    np.testing.assert_array_equal(dataset.test.images, test)
    np.testing.assert_array_equal(dataset.test.labels, np.arange(12) % 10)
    assert "tensorflow" not in sys.modules
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    again = data.load("mnist", "auto", str(tmp_path))
    assert again.fingerprint == dataset.fingerprint


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"classes": 11}, "contains the label 10; expected labels from 0 to 9"),
        (
            {"side": 257},
            r"example 0 of the split train in .* of 257×257; expected at mo",
        ),
    ],
)
def test_a_prepared_set_of_another_kind_is_refused(tmp_path, options, said):
    write_prepared(tmp_path, **options)
    with pytest.raises(UserError, match=said):
        data.load("mnist", "tfds", str(tmp_path))
    assert list((download.cache_dir() / "converted").iterdir()) == []


def test_a_prepared_set_without_training_examples_is_refused(tmp_path):
    write_prepared(tmp_path)
    path = tmp_path / "mnist" / "3.0.1" / "dataset_info.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"splits": [{"name": "test"}]})
    )
    with pytest.raises(
        UserError, match=r"has the splits \['test'\]; expected one with"
    ):
        data.load("mnist", "tfds", tmp_path)


def test_a_prepared_set_may_have_any_size_and_number_of_classes(tmp_path):
    train, _ = write_prepared(tmp_path, classes=12, side=20)
    folder = (tmp_path / "mnist").rename(tmp_path / "runes") / "3.0.1"
    assert data.load("runes", dir=tmp_path).class_names[10:] == ("10", "11")
    names = [f"rune {index}" for index in range(12)]
    (folder / "label.labels.txt").write_text("\n".join(names))
    dataset = data.load("runes", dir=tmp_path)
    assert (dataset.name, dataset.source) == ("runes", "tfds")
    assert dataset.class_names == tuple(names)
    np.testing.assert_array_equal(dataset.train.images, train[2:])


def test_a_prepared_set_is_neither_imported_nor_believed(tmp_path, monkeypatch):
    train, _ = write_prepared(tmp_path)
    folder = tmp_path / "mnist" / "3.0.1"
    # TFDS imports what a set names as the class of its features.
    (tmp_path / "stranger.py").write_text("raise SystemExit('run')")
    monkeypatch.syspath_prepend(str(tmp_path))
    (folder / "features.json").write_text('{"pythonClassName": "stranger.Features"}')
    np.testing.assert_array_equal(
        data.load("mnist", "tfds", str(tmp_path)).train.images, train[2:]
    )
    shutil.rmtree(download.cache_dir())
    (shard,) = folder.glob("*-test.array_record-*")
    shard.write_bytes(shard.read_bytes()[:-99])
    with pytest.raises(UserError, match=r"the split test in .* cannot be read"):
        data.load("mnist", "tfds", str(tmp_path))
    shard.unlink()
    with pytest.raises(UserError, match="0 files of the split test"):
        data.load("mnist", "tfds", str(tmp_path))
