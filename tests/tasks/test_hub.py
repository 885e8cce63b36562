"""Oracle: the model that was saved, and messages that name the flag."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from autocompress.errors import ModelError
from autocompress.tasks.hub import class_names, load_model, load_pretrained
from tests.tiny import bert


class Offline:
    """Stands for an auto class whose hub cannot be reached."""

    @staticmethod
    def from_pretrained(_source: str, **_options: Any) -> None:
        raise OSError("We couldn't connect to the hub\nmore lines")


def test_a_saved_model_comes_back_in_float_and_evaluation_mode(text_model: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    model = load_model(AutoModelForSequenceClassification, text_model)
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    for name, value in bert().state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    assert class_names(model) == ("bad", "fine", "good")


def test_a_half_precision_model_is_loaded_in_float(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    bert().half().save_pretrained(tmp_path)
    model = load_model(AutoModelForSequenceClassification, tmp_path)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("source", ["./none", "/none", "~/none-at-all"])
def test_a_folder_that_is_not_there_is_refused(source: str) -> None:
    with pytest.raises(ModelError, match=f"--model {source}: no such folder"):
        load_pretrained(Offline, source)


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"not a Hugging Face folder \(it holds no config.json\)"):
        load_pretrained(Offline, tmp_path)


def test_a_folder_of_another_kind_is_refused_with_its_reason(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    (tmp_path / "config.json").write_text('{"model_type": "no-such-type"}')
    with pytest.raises(ModelError, match=r"AutoModelForSequenceClassification cannot load it: .*no-such-type"):
        load_pretrained(AutoModelForSequenceClassification, tmp_path)


def test_a_config_without_weights_is_refused(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    bert().config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="cannot load it: "):
        load_pretrained(AutoModelForSequenceClassification, tmp_path)


def test_a_hub_name_without_network_says_what_to_do() -> None:
    with pytest.raises(
        ModelError, match=r"someone/model: .*\(We couldn't connect to the hub\); without a network give"
    ):
        load_pretrained(Offline, "someone/model")
