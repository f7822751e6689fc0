"""Warnings about a data set that can be used, but probably is not as intended."""

from collections.abc import Mapping

import numpy as np

from flaxmnist.errors import UserError, shown

# Images without a brighter pixel are nearly black: 4 bits of depth in 8, or 12 in 16.
_DIM = 16


def no_test(name: str) -> str:
    """Returns the warning about data without a test split."""
    return f"{name} has no test split; a sixth of each class was drawn for it."


def warnings(
    name: str,
    images: np.ndarray,
    labels: Mapping[str, np.ndarray],
    class_names: tuple[str, ...],
) -> list[str]:
    """Returns what a user must know about images that are dark, or classes unseen.

    Args:
      name: of the data.
      images: of the training split.
      labels: split → labels `[count]`.
      class_names: a name per class.

    Raises:
      UserError: no class of the test split has training examples.
    """
    found = []
    if 0 < (most := images[:1_000].max(initial=0)) <= _DIM:
        found.append(
            f"The brightest pixel of the first training images of {name} is {most} of "
            f"255, so that they are nearly black. If {most} stands for white, rescale "
            "them."
        )
    seen = np.unique(labels["train"])
    if len(seen) == 1:
        found.append(
            f"All training examples of {name} are of the class "
            f"{shown(class_names[seen[0]])}."
        )
    for split, its_labels in labels.items():
        classes = np.unique(its_labels)
        unseen = np.setdiff1d(classes, seen)
        if not seen.size or not unseen.size:
            continue
        examples = ", ".join(shown(class_names[label]) for label in unseen[:3])
        examples += ", …" if len(unseen) > 3 else ""
        # A split that is drawn from a few examples may have one only.
        are_all = len(unseen) == len(classes) and len(its_labels) > 1
        if split == "test" and are_all:
            raise UserError(
                f"{name} has no training examples of any class of its test split "
                f"({examples}); expected the same classes in all splits"
            )
        count = np.isin(its_labels, unseen).sum()
        found.append(
            f"{name} has no training examples of {examples}: {count:,} of "
            f"{len(its_labels):,} {split} examples cannot be predicted correctly."
        )
    return found
