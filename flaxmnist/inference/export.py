"""The export of a saved run: what is written, and what its card says."""

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np

from flaxmnist import options
from flaxmnist.config import as_dict
from flaxmnist.core import models
from flaxmnist.core.ensemble import Ensemble
from flaxmnist.export.card import Card
from flaxmnist.export.parity import CHECKED
from flaxmnist.export.write import FORMATS, write_export
from flaxmnist.paths import path_of
from flaxmnist.rundir import integrity
from flaxmnist.runtime import devices
from flaxmnist.runtime.console import Console
from flaxmnist.signatures import parameters

if TYPE_CHECKING:
    from flaxmnist.inference.saved_run import SavedRun


def _generated(image_shape: tuple[int, ...]) -> np.ndarray:
    """Returns noise, with fewer bright pixels than dark ones, as images."""
    noise = np.random.default_rng(0).random((CHECKED, *image_shape), np.float32)
    return (255 * noise**4).astype(np.uint8)


def export_run(
    run: "SavedRun", format: str, output: str | os.PathLike[str] | None = None
) -> Path:
    """Writes a run for other programs; see :meth:`SavedRun.export`."""
    options.check("", {"format": format}, {"format": options.one_of(FORMATS)})
    if output is None:
        integrity.check_links(run.workdir)
        folder = run.workdir / "export" / format
    else:  # The user may name a link; its target is written.
        folder = path_of(output, "output").resolve()
    dataset, summary = run.local_dataset(), run.summary
    test = None if summary is None else summary.test
    if test is None and dataset is not None:
        test = run.evaluate("test")
    if dataset is not None:
        checked_on, images = "test", dataset.test.images[:CHECKED]
    else:
        checked_on, images = "generated", _generated(run.state.image_shape)
    given = as_dict(run.config.model)
    name = given.pop("name")
    accepted = parameters(models.POINT.callable(name))
    filled = {
        "num_classes": run.state.num_classes,
        "image_shape": run.state.image_shape,
    }
    given |= {key: value for key, value in filled.items() if key in accepted}
    if name in models.MODELS:
        name = models.MODELS[name].__name__
    card = Card(
        format=format,
        model=run.model_name,
        architecture=name,
        options=given,
        members=len(run.members),
        parameters=models.num_parameters(run.state.params),
        checkpoint=run.checkpoint,
        is_best=run.is_best,
        test=test,
        dataset=run.manifest.dataset,
        licence=dataset.licence if dataset else None,
        versions=run.manifest.versions,
        checked=f"{len(images):,} {checked_on} images",
        calibration=run.calibration,
    )
    # Off the mesh, which a program would otherwise demand.
    state = jax.device_get(run.state)
    model = models.build(
        image_shape=state.image_shape,
        num_classes=state.num_classes,
        **as_dict(run.config.model),
    )
    if run.members:
        model = Ensemble(model, len(run.members))
    state = dataclasses.replace(state, model=model, layout=None)
    # Accelerators round the factors of products, to TensorFloat-32 or bfloat16.
    with jax.default_device(devices.cpu()):
        difference = write_export(state, folder, images, card)
    console = Console()
    console.line(
        f"{format}: largest difference to the checkpoint {difference:.1e}, over "
        f"{card.checked}"
    )
    if dataset is None and run.manifest.dataset.source != "arrays":
        console.line(
            "The data of the run were not found on this machine; to check with test "
            "images, give their place with --config.data.dir=DIR"
        )
    names = ", ".join(path.name for path in sorted(folder.iterdir()))
    console.line(f"{folder}: {names}")
    return folder
