"""Where images come from, how they are split, and in what order they are seen."""

from flaxmnist.data.batches import DeviceFeed, Feed, HostFeed, epoch_order
from flaxmnist.data.sources import SOURCES, Dataset, Split, load

__all__ = [
    "SOURCES",
    "Dataset",
    "DeviceFeed",
    "Feed",
    "HostFeed",
    "Split",
    "epoch_order",
    "load",
]
