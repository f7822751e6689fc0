"""The callables that a configuration names: found, checked and imported again."""

import sys
from collections.abc import Sequence
from typing import Any, Literal

import pytest

from flaxmnist import extensions, signatures, user_code
from flaxmnist.errors import UserError
from flaxmnist.options import check


def example(
    data,
    count: int,
    rate: float = 1,
    mode: Literal["a", "b"] = "a",
    sizes: "Sequence[int]" = (3, 4),
    pair: tuple[int, str] = (1, "x"),
    limit: int | float | None = None,
    anything: Any = None,
    guess="x",
    function: Any = print,
    **more,
):
    """A callable of the user, which returns the values of its options."""
    return {name: value for name, value in locals().items() if name not in ("more",)}


class Example:
    """A class of the user, whose instance is called."""

    def __init__(self, gamma: float = 2.0):
        self.gamma = gamma

    def __call__(self, logits, labels):
        return self.gamma


def loss(logits, labels, *, gamma: float = 2.0):
    return gamma


POINT = extensions.ExtensionPoint(
    {"loss": loss, "class": Example}, filled=("logits", "labels", "data")
)


def test_options_are_read_from_a_signature():
    found = signatures.options_of(example, {"data"})
    defaults = {name: one.default for name, one in found.items()}
    assert defaults == {
        "count": signatures.REQUIRED,
        "rate": 1.0,
        "mode": "a",
        "sizes": (3, 4),
        "pair": (1, "x"),
        "limit": None,
        "anything": None,
        "guess": "x",
    }
    assert isinstance(defaults["rate"], float)
    types = {name: one.type for name, one in found.items()}
    given = {"count": 2.0, "sizes": [5], "pair": [1, "y"], "limit": 0.5, "guess": 3}
    given["anything"] = [1, ["a", None]]
    assert check("", given, types) == {
        "count": 2,
        "sizes": (5,),
        "pair": (1, "y"),
        "limit": 0.5,
        "guess": "3",
        "anything": (1, ("a", None)),
    }


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("count", None, "a whole number"),
        ("count", 1.5, "a whole number"),
        ("rate", "x", "a number"),
        ("rate", float("nan"), "a number"),
        ("sizes", (1, "x"), "a tuple of any number of values, each a whole number"),
        ("pair", (1,), "a tuple of 2 values, each a whole number, a text"),
        ("limit", "x", "a whole number, or a number, or None"),
        ("anything", {"a": 1}, "None, a number, a text, True, False, or a tuple"),
    ],
)
def test_an_option_of_another_type_is_refused(name, value, expected):
    types = {key: one.type for key, one in signatures.options_of(example).items()}
    with pytest.raises(UserError, match=rf"{name}=.*: expected {expected}"):
        check("", {name: value}, types)


def test_a_parameter_that_no_configuration_can_hold_needs_a_default():
    def takes_a_function(function: type):
        return function

    with pytest.raises(UserError, match=r"requires 'function', which a configuration"):
        signatures.options_of(takes_a_function)
    assert signatures.options_of(takes_a_function, {"function"}) == {}


def test_callables_are_built_or_bound_with_their_own_options():
    spec = f"{__name__}:example"
    convert = POINT.convert
    assert convert(loss) == convert("loss") == "loss"
    assert convert(example) == convert(spec) == spec
    built = POINT.build(spec, {"count": 3, "gamma": 1}, data="d", unknown=1)
    assert (built["count"], built["data"], built["rate"]) == (3, "d", 1)
    bound = POINT.bind("loss", {"gamma": 3.0})
    assert bound(1, labels=2) == 3.0
    assert bound == POINT.bind("loss", {"gamma": 3.0}) != POINT.bind("loss", {})
    assert hash(bound) == hash(POINT.bind("loss", {"gamma": 3.0}))
    assert POINT.bind("class", {"gamma": 4.0})(1, 2) == 4.0
    with pytest.raises(UserError, match=r"example: TypeError: .*'count'"):
        POINT.build(spec, {}, data=1)
    assert POINT.users("gamma") == ["loss", "class"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("losss", r" is unknown; did you mean 'loss'"),
        (7, r" is unknown\. Valid names: class, loss"),
        (lambda logits: logits, r" cannot be imported again by its name; expected"),
        ("nowhere.at_all:f", r"the module 'nowhere.at_all' was not found; run in"),
        ("nowhere.py:f", r"nowhere.py does not exist; give its path"),
        (":f", r'expected "package.module:name" or "file.py:name"'),
        (f"{__name__}:exampel", r"has no 'exampel'; did you mean 'example'"),
        (f"{__name__}:__name__", r"is 'test_extensions'; expected a class or a fun"),
        ("os:system", r"is part of Python itself"),
        (f"{__name__}:sys.exit", r"is part of Python itself"),
        ("__main__:Net", r"was defined in another program or notebook"),
    ],
)
def test_a_callable_that_cannot_be_used_is_refused(value, message):
    with pytest.raises(UserError, match=message):
        check("", {"loss": value}, {"loss": POINT})


def test_an_error_in_the_code_of_the_user_names_its_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_code_of_test.py").write_text("import os\n1 / 0\n")
    (tmp_path / "bad.py").write_text("import no_such_module\n")
    for spec, message in (
        ("own_code_of_test:f", r"own_code_of_test.py, line 2: ZeroDivisionError"),
        ("bad.py:f", r"bad.py, line 1: ModuleNotFoundError: .*no_such_module"),
    ):
        path = list(sys.path)
        with pytest.raises(UserError, match=message):
            user_code.load(spec)
        assert sys.path == path
        assert str(tmp_path / "bad.py") not in sys.modules


def test_no_code_inside_a_run_directory_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("inside_of_test.py", "file.py"):
        (tmp_path / name).write_text("raise AssertionError\n")
    with user_code.opening(tmp_path, [str(tmp_path)]):
        for spec in ("inside_of_test:f", "file.py:f", f"{tmp_path}/file.py:f"):
            with pytest.raises(UserError, match="inside the run directory, from which"):
                user_code.load(spec)
