"""The data that a user asks for, and how a data set is built from files."""

import dataclasses
import os
from pathlib import Path

from flaxmnist.data import cache, emnist
from flaxmnist.data.checks import no_test
from flaxmnist.data.draw import Draw
from flaxmnist.data.raw import Raw
from flaxmnist.data.splits import Dataset, Split, divide
from flaxmnist.errors import UserError, shown
from flaxmnist.paths import path_of


@dataclasses.dataclass(frozen=True)
class Request:
    """The data that a source should load.

    Attributes:
      name: of the data set.
      directory: a directory or file; None for the places of the source.
      draw: how to draw splits that the data do not have.
    """

    name: str
    directory: str | None
    draw: Draw = dataclasses.field(default_factory=Draw)

    def given(self) -> tuple[str, Path] | None:
        """Returns a given path, after the name of its option or variable.

        Raises:
          UserError: it is not a path.
        """
        for option, given in (
            ("data.dir", self.directory),
            ("FLAXMNIST_DATA_DIR", os.environ.get("FLAXMNIST_DATA_DIR")),
        ):
            if given:
                return option, path_of(given, option)
        return None

    def existing(self, source: str) -> tuple[str, Path]:
        """Returns the given path as :meth:`given` does.

        Raises:
          UserError: no path is given, or it does not exist.
        """
        if (found := self.given()) is None:
            raise UserError(
                f"data.source={source!r} requires a directory or file; set data.dir or "
                "FLAXMNIST_DATA_DIR to it"
            )
        option, path = found
        if not path.exists():
            raise UserError(f"{option}={shown(str(path))} does not exist")
        return found


def build(request: Request, name: str, raw: Raw, place: Path) -> Dataset:
    """Returns the data set in files, converted or from the cache."""
    # Not of `name`, which may be that of a directory.
    split = emnist.split_of(request.name)
    if split is not None:
        raw = emnist.upright(raw, split)
    has_test = "test" in raw.splits
    # As the tutorials do, take the first examples of sets that are published in order.
    is_published = raw.source in ("idx", "tfds") and has_test
    draw = None if is_published and request.draw == Draw() else request.draw
    splits, names = cache.convert(raw, shown(str(place)), draw)
    warnings = [raw.warning] if raw.warning else []
    if not has_test:
        warnings.append(no_test(name))
    if "validation" in splits:
        train, validation, test = (
            Split(*splits[split]) for split in ("train", "validation", "test")
        )
        dataset = Dataset(name, raw.source, train, validation, test, class_names=names)
    else:
        arrays = [*splits["train"], *splits["test"]]
        dataset = divide(name, raw.source, arrays, (), names)
    warnings += [dataset.warning] if dataset.warning else []
    if split is None:
        emnist.check_upright(dataset)
    return dataclasses.replace(dataset, warning="\n".join(warnings) or None)
