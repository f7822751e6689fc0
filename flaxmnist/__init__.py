"""Functional MNIST training in JAX and Flax: pure, sharded, resumable.

`__all__` lists the public names and modules. A public module lists its own public names
in its `__all__`. Every other name may change in any release.
"""

import lazy_loader

__version__ = "0.2.0"

# The names are those of `__init__.pyi`; their modules are imported at the first use.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
