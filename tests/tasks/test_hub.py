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


def test_a_model_without_its_head_is_refused_but_as_a_student(tmp_path: Path) -> None:
    """Transformers draws what is missing at random, so that a search would compress a coin."""
    from transformers import AutoModelForSequenceClassification

    bert().bert.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"holds no weights for classifier\.bias, classifier\.weight of Bert.*trained"):
        load_model(AutoModelForSequenceClassification, tmp_path)
    assert load_model(AutoModelForSequenceClassification, tmp_path, trained=False)


def test_a_head_of_another_shape_is_refused(tmp_path: Path) -> None:
    import json

    from transformers import AutoModelForSequenceClassification

    bert().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"id2label": {str(i): f"class {i}" for i in range(7)}, "label2id": {f"class {i}": i for i in range(7)}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"holds no weights for classifier\.bias, classifier\.weight"):
        load_model(AutoModelForSequenceClassification, tmp_path)


def test_weights_that_are_no_weights_are_refused(tmp_path: Path) -> None:
    """What git leaves in place of a large file that was not fetched."""
    from transformers import AutoModelForSequenceClassification

    bert().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(ModelError, match=r"cannot load it: .*header"):
        load_model(AutoModelForSequenceClassification, tmp_path)
