"""The layering of docs/architecture.md, read from the page itself and held against the imports of the code."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "autocompress"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
FILES = sorted(PACKAGE.rglob("*.py"))


def rooms() -> dict[str, int]:
    """Room to level, from the table "The rooms": rows of ``| level | `room` | … |``."""
    found = re.findall(r"^\| (\d+) \| `([a-z_]+)(?:\.py|/)` \|", PAGE, flags=re.M)
    return {room: int(level) for level, room in found}


def libraries() -> dict[str, set[str]]:
    """Third-party library to the files or folders that may import it, from the table "Where libraries live"."""
    found = re.findall(r"^\| `([A-Za-z0-9_]+)` \| (`[^|]+`) \|", PAGE, flags=re.M)
    return {library: set(re.findall(r"`([^`]+)`", homes)) for library, homes in found}


def room_of(path: Path) -> str:
    inside = path.relative_to(PACKAGE)
    return inside.parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def ids(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def test_every_room_stands_in_the_page() -> None:
    found = {room_of(path) for path in FILES} - {"__init__"}
    assert found == set(rooms())


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_imports_go_down(path: Path) -> None:
    if path == PACKAGE / "__init__.py":
        pytest.skip("the public names point everywhere, lazily")
    levels, room = rooms(), room_of(path)
    upward = []
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "autocompress" or len(parts) < 2 or parts[1] == room:
            continue
        if levels[parts[1]] >= levels[room]:
            upward.append(f"{name} (level {levels[parts[1]]} from {levels[room]})")
    assert not upward


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_libraries_stay_in_their_rooms(path: Path) -> None:
    homes = libraries()
    strangers = []
    for name in imports(path):
        library = name.split(".")[0]
        if library in sys.stdlib_module_names or library in ("autocompress", "numpy", "__future__"):
            continue
        inside = str(path.relative_to(PACKAGE))
        if not any(inside == home or inside.startswith(home) for home in homes.get(library, set())):
            strangers.append(library)
    assert not strangers


def test_each_dependency_says_where_it_is_needed() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    project = tomllib.loads(text)["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    for dependency in (item for group in lists for item in group):
        line = next(line for line in text.splitlines() if f'"{dependency}"' in line)
        assert "# " in line, f"{dependency} carries no comment"


def test_no_long_files() -> None:
    long = {ids(p): n for p in FILES if (n := len(p.read_text().splitlines())) > 420}
    assert set(long) <= {"report/figures.py"}, long
