"""Data sets, their splits, and the order in which training sees the examples."""

from flaxmnist.data.datasets import SOURCES, load
from flaxmnist.data.feeds import DeviceFeed, Feed, HostFeed
from flaxmnist.data.order import epoch_order
from flaxmnist.data.splits import SPLITS, Dataset, Split

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
