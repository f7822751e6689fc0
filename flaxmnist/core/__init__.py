"""Models, optimizers, metrics and pure steps: no file, no output, no configuration."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["metrics", "models", "optim", "sharding", "state", "steps"],
)
