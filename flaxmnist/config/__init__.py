"""Configurations: every option with its type and default, and files that set them."""

from flaxmnist.config.code import NamedCode as NamedCode
from flaxmnist.config.code import named_code as named_code
from flaxmnist.config.code import sources as sources
from flaxmnist.config.code import user_code as user_code
from flaxmnist.config.conversion import as_dict as as_dict
from flaxmnist.config.conversion import changed_options as changed_options
from flaxmnist.config.conversion import differences as differences
from flaxmnist.config.conversion import fixed_options as fixed_options
from flaxmnist.config.conversion import flat as flat
from flaxmnist.config.conversion import from_dict as from_dict
from flaxmnist.config.conversion import from_json as from_json
from flaxmnist.config.conversion import make_config as make_config
from flaxmnist.config.conversion import override as override
from flaxmnist.config.conversion import resolve as resolve
from flaxmnist.config.conversion import to_json as to_json
from flaxmnist.config.files import flags_of as flags_of
from flaxmnist.config.files import load as load
from flaxmnist.config.files import shipped as shipped
from flaxmnist.config.files import variant as variant
from flaxmnist.config.reference import help_text as help_text
from flaxmnist.config.schema import Config as Config

# Names for users. The other names are for the other packages.
__all__ = [
    "Config",
    "load",
    "make_config",
    "resolve",
    "variant",
]
