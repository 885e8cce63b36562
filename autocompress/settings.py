"""Reading YAML settings: shipped by name or the user's by path, every mistake told at once.

Knows files and schemas (pydantic models), not what the settings mean.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from autocompress.errors import ConfigError, near

PACKAGE = Path(__file__).resolve().parent

Schema = TypeVar("Schema", bound=BaseModel)


def shipped_folder(folder: str) -> Path:
    """Where the shipped `folder` (such as "search_spaces") lies: in the wheel, or at the top of the checkout."""
    inside = PACKAGE / folder
    return inside if inside.is_dir() else PACKAGE.parent / folder


def shipped_names(folder: str) -> list[str]:
    """Names of the shipped YAML files of a folder, sorted."""
    return sorted(path.stem for path in shipped_folder(folder).glob("*.yaml"))


def find_yaml(name_or_path: str | Path, folder: str, error: type[ConfigError]) -> Path:
    """The file meant by a shipped name or a path; raises `error` with near names."""
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        if not path.is_file():
            raise error(f"{path}: no such file")
        return path
    names = shipped_names(folder)
    if str(name_or_path) not in names:
        raise error(f"{folder} has no {str(name_or_path)!r}{near(str(name_or_path), names)} (or give a .yaml path)")
    return shipped_folder(folder) / f"{name_or_path}.yaml"


def read_yaml(path: Path, error: type[ConfigError]) -> dict[str, Any]:
    """The mapping in a YAML file; raises `error` naming file and line."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as fault:
        raise error(f"{path}: not valid YAML: {' '.join(str(fault).split())}") from None
    except (OSError, UnicodeDecodeError) as fault:
        raise error(f"{path}: cannot be read: {fault}") from None
    if not isinstance(data, dict):
        raise error(f"{path}: expected keys and values, but got {type(data).__name__}")
    return data


def _keys(schema: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Legal keys of the mapping at `location` inside a schema, as far as it can be followed."""
    model: Any = schema
    for part in location:
        if isinstance(part, int):
            continue
        info = getattr(model, "model_fields", {}).get(part)
        if info is None:
            return []
        model = info.annotation
        for inner in getattr(model, "__args__", ()):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                model = inner
    return sorted(getattr(model, "model_fields", {}))


def validate(schema: type[Schema], data: dict[str, Any], source: str, error: type[ConfigError]) -> Schema:
    """Fill `schema` from `data`; raises `error` with one line per mistake: file, key, value, remedy."""
    try:
        return schema.model_validate(data)
    except ValidationError as fault:
        lines = []
        for item in fault.errors():
            where = ".".join(str(part) for part in item["loc"])
            if item["type"] == "extra_forbidden":
                hint = near(str(item["loc"][-1]), _keys(schema, item["loc"][:-1]))
                lines.append(f"{where}: unknown key{hint}")
            elif item["type"] == "missing":
                lines.append(f"{where}: this key is required")
            else:
                lines.append(f"{where}: {item['msg'][:1].lower() + item['msg'][1:]}, but got {item['input']!r}")
        raise error("\n  ".join([f"{source}:", *lines]) if len(lines) > 1 else f"{source}: {lines[0]}") from None
