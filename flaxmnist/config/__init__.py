"""Configurations: every option with its type and default, and files that set them."""

from flaxmnist.config.files import flags_of, load, shipped, variant
from flaxmnist.config.schema import (
    differences,
    fixed_options,
    from_json,
    make_config,
    override,
    resolve,
    resolved,
    to_json,
)

__all__ = [
    "differences",
    "fixed_options",
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
]
