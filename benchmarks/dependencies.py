"""What each package that flaxmnist depends on costs: disk space, packages, start-up.

python -m benchmarks.dependencies

Prints a Markdown table. `alone` counts what no other dependency brings, too: what
would go with it. Seconds are the median of five imports in fresh processes.
"""

import re
import statistics
import subprocess
import sys
import time
from importlib import metadata

from packaging.requirements import Requirement

# What flaxmnist imports of a package first, where its name does not tell.
MODULES = {
    "absl-py": "absl.logging",
    "array-record": "array_record.python.array_record_data_source",
    "etils": "etils.epy",
    "importlib-resources": "importlib_resources",
    "lazy-loader": "lazy_loader",
    "matplotlib": "matplotlib.figure",
    "ml-collections": "ml_collections",
    "opencv-python-headless": "cv2",
    "orbax-checkpoint": "orbax.checkpoint",
    "packaging": "packaging.requirements",
    "pillow": "PIL.Image",
    "scikit-image": "skimage.morphology",
    "scipy": "scipy.ndimage",
    "tensorboard": "tensorboard.plugins.hparams.summary_v2",
    "tensorflow-datasets": "tensorflow_datasets",
    "flax": "flax.linen",
    "rich": "rich.progress",
}
IMPORTS = 5


def _key(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _requirements(name: str, extras: frozenset[str]) -> set[tuple[str, frozenset[str]]]:
    found = set()
    for text in metadata.requires(name) or ():
        one = Requirement(text)
        wanted = [{"extra": extra} for extra in ("", *extras)]
        if one.marker is None or any(one.marker.evaluate(extra) for extra in wanted):
            found.add((one.name, frozenset(one.extras)))
    return found


def _closure(roots: set[tuple[str, frozenset[str]]]) -> set[str]:
    """Returns all packages that `roots` install, themselves included."""
    seen, left = set(), set(roots)
    while left:
        one = left.pop()
        if one not in seen:
            seen.add(one)
            left |= _requirements(*one)
    return {_key(name) for name, _ in seen}


def _bytes(name: str) -> int:
    files = metadata.files(name) or ()
    paths = [file.locate() for file in files]
    return sum(path.stat().st_size for path in paths if path.is_file())


def _seconds(module: str) -> float:
    def run(code: str) -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        return time.perf_counter() - began

    pairs = [run(f"import {module}") - run("pass") for _ in range(IMPORTS)]
    return max(0.0, statistics.median(pairs))


def main() -> None:
    """Prints the table."""
    direct = _requirements("flaxmnist", frozenset())
    everything = _closure(direct)
    sizes = {name: _bytes(name) / 1e6 for name in everything}
    print("| package | MB | alone: packages | alone: MB | import, s |")
    print("|---|---|---|---|---|")
    for one in sorted(direct, key=lambda one: one[0].lower()):
        alone = everything - _closure(direct - {one})
        mb = sum(sizes[name] for name in alone)
        seconds = _seconds(MODULES.get(_key(one[0]), one[0]))
        print(
            f"| {one[0]} | {sizes[_key(one[0])]:.0f} | {len(alone)} | {mb:.0f} "
            f"| {seconds:.2f} |"
        )
    print(f"\n{len(everything)} packages, {sum(sizes.values()):,.0f} MB")


if __name__ == "__main__":
    main()
