"""Oracle: the tree drawn in the module's docstring, and hints written by hand."""

from __future__ import annotations

import inspect
import re

import pytest

from autocompress import errors
from autocompress.errors import AutocompressError, near


def drawn_tree() -> dict[str, str]:
    """Class to parent as the docstring draws it: depth is the column of the name."""
    parents: dict[str, str] = {}
    stack: list[tuple[int, str]] = []
    for line in inspect.getdoc(errors).splitlines():  # type: ignore[union-attr]
        found = re.match(r"^[\s│├└─]*(\w+Error)\b", line)
        if not found:
            continue
        column = found.start(1)
        stack = [(c, n) for c, n in stack if c < column]
        parents[found.group(1)] = stack[-1][1] if stack else "Exception"
        stack.append((column, found.group(1)))
    return parents


def test_docstring_draws_exactly_the_classes_of_the_module():
    classes = {
        name: cls.__bases__[0].__name__
        for name, cls in vars(errors).items()
        if inspect.isclass(cls) and issubclass(cls, Exception)
    }
    assert drawn_tree() == classes


def test_exit_codes_are_two_and_three_only_where_nothing_fits():
    codes = {
        name: cls.exit_code
        for name, cls in vars(errors).items()
        if inspect.isclass(cls) and issubclass(cls, AutocompressError)
    }
    assert {name for name, code in codes.items() if code == 3} == {"NothingFitsError"}
    assert set(codes.values()) == {2, 3}


@pytest.mark.parametrize(
    ("name", "known", "hint"),
    [
        pytest.param("hedas", ["heads", "rank"], "; did you mean 'heads'?", id="one_near"),
        pytest.param("layer.1", ["layer.2", "layer.3"], "; did you mean 'layer.3' or 'layer.2'?", id="two_near"),
        pytest.param("zzz", ["b", "a"], "; known: a, b", id="none_near_sorted"),
        pytest.param("zzz", [f"n{i}" for i in range(9)], "; known: n0, n1, n2, n3, n4, n5, n6, n7, …", id="cut_at_8"),
        pytest.param("zzz", [], "", id="nothing_known"),
    ],
)
def test_near_hint(name, known, hint):
    assert near(name, known) == hint
