"""Where to look for the data that a saved run was trained on."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from flaxmnist import data
from flaxmnist.config import Config, as_dict
from flaxmnist.data import Dataset
from flaxmnist.data.datasets import locate
from flaxmnist.data.forms import FORMS
from flaxmnist.errors import UserError
from flaxmnist.rundir.manifest import Manifest
from flaxmnist.training.resume import check_same_data


@dataclasses.dataclass(frozen=True)
class DataPlaces:
    """The places of the data, in the order in which they are tried.

    Attributes:
      options: the arguments of `data.load`, but for `dir`.
      directories: values of the option `data.dir`.
      is_told: whether the caller changed the place that the run recorded.
      given: the data, if the caller gave them instead of a place.
    """

    options: Mapping[str, Any]
    directories: tuple[str | None, ...]
    is_told: bool
    given: Dataset | None = None

    @classmethod
    def of(
        cls,
        saved: Config,
        given: Config,
        manifest: Manifest,
        dataset: Dataset | None = None,
    ) -> "DataPlaces":
        """Returns the places for a run.

        Args:
          saved: the configuration of the run.
          given: the same, with the changes of the caller.
          manifest: of the checkpoint.
          dataset: the data, if the caller has them.
        """
        source, directory = given.data.source, given.data.dir
        is_told = (saved.data.source, saved.data.dir) != (source, directory)
        directories: tuple[str | None, ...] = (directory,)
        # Where no directory is given, these sources read FLAXMNIST_DATA_DIR.
        by_environment = source in ("auto", "idx", *FORMS) and directory is not None
        if by_environment and not is_told and os.environ.get("FLAXMNIST_DATA_DIR"):
            directories = (None, directory)
        options = as_dict(given.data)
        del options["placement"], options["dir"]
        # "auto" depends on the network, and fell back on "bundled" then.
        if source == "auto" and manifest.dataset.source == "bundled":
            options["source"] = "bundled"
        return cls(options, directories, is_told, dataset)

    def load(self, manifest: Manifest) -> Dataset:
        """Returns the data from the first place that has those of the manifest.

        Raises:
          UserError: they cannot be found; the message is about the first place.
        """
        if self.given is not None:
            check_same_data(manifest, self.given)
            return self.given
        if manifest.dataset.source == "arrays" and not self.is_told:
            raise UserError(
                f"this run was trained on arrays, {manifest.dataset.name}, that a "
                "program gave; expected them again, as in open_run(workdir, data=…)"
            )
        errors = []
        for directory in self.directories:
            try:
                dataset = self._read(directory)
                check_same_data(manifest, dataset)
                return dataset
            except UserError as error:
                errors.append(error)
        raise errors[0]

    def _read(self, directory: str | None) -> Dataset:
        try:
            return data.load(dir=directory, **self.options)
        except UserError as error:
            if self.is_told:
                raise
            raise UserError(
                f"{error}\nIf the data have moved, give their directory with "
                "--config.data.dir=DIR"
            ) from None

    @property
    def needs_network(self) -> bool:
        """Whether :meth:`load` would download the data."""
        return (
            self.given is None
            and self.options["source"] in ("auto", "tfds")
            and not any(
                locate(self.options["name"], directory)
                for directory in self.directories
            )
        )
