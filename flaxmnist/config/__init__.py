"""Configurations: every option with its type and default, and files that set them."""

from flaxmnist.config.files import flags_of, load, shipped, variant
from flaxmnist.config.schema import (
    differences,
    from_json,
    make_config,
    override,
    resolve,
    resolved,
    to_json,
    what_matters,
)

__all__ = [
    "differences",
    "flags_of",
    "from_json",
    "load",
    "make_config",
    "override",
    "resolve",
    "resolved",
    "shipped",
    "to_json",
    "variant",
    "what_matters",
]
