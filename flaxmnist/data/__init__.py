"""Where images come from, how they are split, and in what order they are seen."""

from flaxmnist.data.batches import DeviceFeed, Feed, HostFeed, epoch_order
from flaxmnist.data.sources import SOURCES, SPLITS, Dataset, Split, load

__all__ = [
    "SOURCES",
    "SPLITS",
    "Dataset",
    "DeviceFeed",
    "Feed",
    "HostFeed",
    "Split",
    "epoch_order",
    "load",
]
