"""Where images come from, how they are split, and in what order they are seen."""

from flaxmnist.data.datasets import SOURCES, SPLITS, Dataset, Split, load
from flaxmnist.data.feeds import DeviceFeed, Feed, HostFeed, epoch_order

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
