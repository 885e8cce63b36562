"""Oracles: what was written is read back; sentences by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from autocompress.errors import ConfigError
from autocompress.found import Audit, Found, Importances, Loss, Share, read_found, read_losses
from autocompress.records import write_json

AUDIT = Audit(1, 2, 0.2, 0.31, 4, 0.8, (0.7, 0.8, 0.9, 0.95), (0.8, 0.9, 0.95, 0.94))
FOUND = Found((Importances("recovery", 14, 12, (Share("steps", 0.5, 0.2), Share("temperature", 0.1, 0.2))),), (AUDIT,))
LOSS = Loss("net.0", "heads", "50 %", 0.02, False)


def test_what_is_found_is_read_back(tmp_path: Path) -> None:
    write_json(tmp_path / "search.json", FOUND.to_json())
    assert read_found(tmp_path / "search.json") == FOUND
    write_json(tmp_path / "losses.json", [LOSS.to_json()])
    assert read_losses(tmp_path / "losses.json") == (LOSS,)


def test_an_unknown_correlation_is_null_in_json(tmp_path: Path) -> None:
    alike = Audit(0, 1, 0.1, 0.2, 4, math.nan)
    write_json(tmp_path / "search.json", Found(audits=(alike,)).to_json())
    assert json.loads((tmp_path / "search.json").read_text())["audits"][0]["correlation"] is None
    (read,) = read_found(tmp_path / "search.json").audits
    assert math.isnan(read.correlation)


def test_old_runs_found_nothing(tmp_path: Path) -> None:
    assert read_found(tmp_path / "search.json") == Found()
    assert read_losses(tmp_path / "losses.json") == ()


@pytest.mark.parametrize("text", ["{", "[1]", '{"importances": [{"of": "x"}], "audits": []}', '{"audits": [{}]}'])
def test_a_foreign_file_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "search.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"search\.json: not written by autocompress search .* remove it to go on"):
        read_found(path)
    with pytest.raises(ConfigError, match="not written by autocompress search"):
        read_losses(path)


def test_shares_are_shown_above_chance() -> None:
    assert [share.shown for share in FOUND.importances[0].shares] == [True, False]


@pytest.mark.parametrize(
    ("audit", "said"),
    [
        (AUDIT, "rung 1 foretells rung 2 with rank correlation 0.80 (4 candidates, ratio 0.200 to 0.310)"),
        (Audit(1, 2, 0.2, 0.3, 5, 0.5), "ratio 0.200 to 0.300): not trusted, so up to twice as many go on"),
        (Audit(0, 1, 0.2, 0.3, 5, -0.5), "ratio 0.200 to 0.300): not trusted, so what lost much may come back"),
        (Audit(0, 1, 0.2, 0.3, 5, math.nan), "an unknown rank correlation (5 candidates, ratio 0.200 to 0.300)"),
    ],
)
def test_an_audit_in_words(audit: Audit, said: str) -> None:
    assert audit.words().endswith(said)
