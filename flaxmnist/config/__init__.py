"""Configurations: every option with its type and default, and files that set them."""

from flaxmnist.config.conversion import (
    as_dict,
    differences,
    fixed_options,
    flat,
    from_dict,
    from_json,
    make_config,
    override,
    resolve,
    to_json,
)
from flaxmnist.config.files import flags_of, load, shipped, variant
from flaxmnist.config.groups import (
    DataConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
)
from flaxmnist.config.reference import help_text
from flaxmnist.config.schema import Config

__all__ = [
    "Config",
    "DataConfig",
    "MeshConfig",
    "ModelConfig",
    "OptimizerConfig",
    "as_dict",
    "differences",
    "fixed_options",
    "flags_of",
    "flat",
    "from_dict",
    "from_json",
    "help_text",
    "load",
    "make_config",
    "override",
    "resolve",
    "shipped",
    "to_json",
    "variant",
]
