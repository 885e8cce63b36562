"""Oracle: every message is written out by hand: file, key, value, remedy, all mistakes at once."""

from __future__ import annotations

import re

import pytest
from pydantic import BaseModel, ConfigDict, Field

from autocompress.errors import ConfigError, SpaceError
from autocompress.settings import find_yaml, read_yaml, shipped_folder, shipped_names, validate


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    low: float = 0.0
    high: float = 1.0


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    count: int = Field(1, ge=1)
    inner: Inner = Inner()
    rules: tuple[Inner, ...] = ()


def test_shipped_names_are_the_files_of_the_checkout():
    assert shipped_names("search_spaces") == sorted(p.stem for p in shipped_folder("search_spaces").glob("*.yaml"))
    assert "transformer" in shipped_names("search_spaces")


def test_a_shipped_name_and_a_path_both_find_a_file(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("a: 1\n")
    assert find_yaml("transformer", "search_spaces", SpaceError) == shipped_folder("search_spaces") / "transformer.yaml"
    assert find_yaml(file, "search_spaces", SpaceError) == file
    assert find_yaml(str(file), "search_spaces", SpaceError) == file


def test_a_file_without_yaml_suffix_is_found_too(tmp_path):
    (tmp_path / "mine").write_text("a: 1\n")
    assert find_yaml(tmp_path / "mine", "search_spaces", SpaceError) == tmp_path / "mine"


def test_a_missing_path_is_named(tmp_path):
    with pytest.raises(SpaceError, match=r"gone\.yaml: no such file"):
        find_yaml(tmp_path / "gone.yaml", "search_spaces", SpaceError)


def test_an_unknown_name_shows_near_names():
    with pytest.raises(SpaceError, match=r"search_spaces has no 'transformr'; did you mean 'transformer'.*\.yaml path"):
        find_yaml("transformr", "search_spaces", SpaceError)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"a: [1,\n", r"mine\.yaml: not valid YAML: .*line 2", id="syntax_with_line"),
        pytest.param(b"", r"mine\.yaml: expected keys and values, but got NoneType", id="empty"),
        pytest.param(b"- 1\n", r"mine\.yaml: expected keys and values, but got list", id="list"),
        pytest.param(b"a: \xff\n", r"mine\.yaml: ", id="not_utf8"),
        pytest.param(b"a: !!python/object/apply:os.getcwd []\n", r"mine\.yaml: not valid YAML", id="python_object"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path, content, message):
    (tmp_path / "mine.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_yaml(tmp_path / "mine.yaml", ConfigError)


def test_validate_fills_the_schema():
    assert validate(Outer, {"name": "n", "inner": {"low": 0.5}}, "f", ConfigError).inner == Inner(low=0.5)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param({"name": "n", "cuont": 1}, "f.yaml: cuont: unknown key; did you mean 'count'?", id="unknown_key"),
        pytest.param(
            {"name": "n", "inner": {"hihg": 1}},
            "f.yaml: inner.hihg: unknown key; did you mean 'high'?",
            id="unknown_inner_key",
        ),
        pytest.param(
            {"name": "n", "rules": [{}, {"lwo": 1}]},
            "f.yaml: rules.1.lwo: unknown key; did you mean 'low'?",
            id="unknown_key_in_a_list",
        ),
        pytest.param({}, "f.yaml: name: this key is required", id="missing_key"),
        pytest.param({"name": 3}, "f.yaml: name: input should be a valid string, but got 3", id="wrong_type"),
        pytest.param(
            {"name": "n", "count": 0},
            "f.yaml: count: input should be greater than or equal to 1, but got 0",
            id="out_of_range",
        ),
    ],
)
def test_validate_names_file_key_value_and_remedy(data, message):
    with pytest.raises(SpaceError, match="^" + re.escape(message) + "$"):
        validate(Outer, data, "f.yaml", SpaceError)


def test_validate_tells_several_mistakes_at_once():
    data = {"count": "many", "inner": {"low": []}, "nmae": "n"}
    with pytest.raises(ConfigError, match=r"f\.yaml:") as caught:
        validate(Outer, data, "f.yaml", ConfigError)
    first, *rest = str(caught.value).splitlines()
    assert first == "f.yaml:"
    assert sorted(line.strip() for line in rest) == [
        "count: input should be a valid integer, unable to parse string as an integer, but got 'many'",
        "inner.low: input should be a valid number, but got []",
        "name: this key is required",
        "nmae: unknown key; did you mean 'name'?",
    ]
