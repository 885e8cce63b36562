"""Who takes part: models, peers and their settings, our settings, and where every file lies. Does nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PLACE = Path(__file__).resolve().parent.parent / ".peers"
PROFILES = {"onnxruntime": "cpu", "openvino": "openvino-cpu"}
BATCH = {"minilm": 1, "resnet20": 32}
LENGTH = {"minilm": 128, "resnet20": None}
#: Heads and hidden size, for peers that fuse attention.
TRANSFORMER = {"minilm": {"heads": 12, "hidden": 384}, "resnet20": None}

OLD = ("onnxruntime==1.18.1", "onnx==1.16.2", "numpy==1.26.4", "torch==2.13.0")  # what both last releases were made for
BUILD = "setuptools==80.9.0"  # the last that holds pkg_resources, which they import


@dataclass(frozen=True)
class Peer:
    """A tool, how it is installed, and the settings of its script that are tried on each model."""

    script: str
    packages: tuple[str, ...]
    arms: Mapping[str, tuple[str, ...]]


PEERS = {
    "nncf": Peer(
        "with_nncf.py",
        ("nncf==3.4.0", "openvino==2026.4.1", "onnx==1.23.2", "onnxruntime==1.31.1"),
        dict.fromkeys(BATCH, ("default", "performance", "accurate", "onnx")),
    ),
    "onnxruntime": Peer(
        "with_onnxruntime.py",
        ("onnxruntime==1.31.1", "onnx==1.23.2", "sympy==1.14.0", "torch==2.13.0"),
        {
            "minilm": ("dynamic", "dynamic-fused", "static", "static-unsigned", "static-matmul", "static-percentile"),
            "resnet20": ("dynamic", "static", "static-unsigned", "static-entropy", "static-percentile"),
        },
    ),
    "neural-compressor": Peer(
        "with_neural_compressor.py",
        ("neural-compressor==2.6", *OLD, "six==1.17.0", BUILD),
        {"minilm": ("static", "static-fused", "dynamic", "tuned"), "resnet20": ("static", "tuned")},
    ),
    "onnx-neural-compressor": Peer(
        "with_onnx_neural_compressor.py",
        ("onnx-neural-compressor==1.0", *OLD, "prettytable==3.18.0", "scipy==1.17.1", BUILD),
        {"minilm": ("static", "smooth", "dynamic", "tuned"), "resnet20": ("static", "smooth", "tuned")},
    ),
}

STATIC, DYNAMIC = {"precision": "int8"}, {"precision": "int8-dynamic"}
CAREFUL = {"rounding": "gptq", "bias_correction": True}

#: Our settings of each model and runtime, from a name to what happens to which layers; a later pattern goes first.
OURS: dict[str, dict[str, dict[str, dict[str, dict]]]] = {"minilm": {}, "resnet20": {}}


def _encoder(**roles: dict) -> dict[str, dict]:
    """Settings for all linears of a BERT; `down` (the second of each feed-forward part) may differ."""
    chosen = {"bert.encoder.*": roles["every"], "bert.pooler.dense": roles["every"], "classifier": roles["every"]}
    if "down" in roles:
        chosen["bert.encoder.layer.[0-9].output.dense"] = roles["down"]
    return chosen


for _name, _quantize in (("int8", STATIC), ("int8 careful", {**STATIC, **CAREFUL})):
    for _runtime in PROFILES:
        OURS["minilm"].setdefault(_runtime, {})[_name] = _encoder(every=_quantize)
        OURS["resnet20"].setdefault(_runtime, {})[_name] = {"*conv*": _quantize, "linear": _quantize}
for _runtime in PROFILES:
    OURS["minilm"][_runtime]["int8 careful, smooth"] = _encoder(every={**STATIC, **CAREFUL, "smooth": 0.5})
    OURS["resnet20"][_runtime]["int8 mse"] = {name: {**STATIC, "calibrator": "mse"} for name in ("*conv*", "linear")}
OURS["minilm"]["onnxruntime"] |= {
    "int8-dynamic": _encoder(every=DYNAMIC),
    "mixed: dynamic down": _encoder(every={**STATIC, **CAREFUL}, down={**DYNAMIC, **CAREFUL}),
}


@dataclass(frozen=True)
class Entry:
    """One file to be made: by whom, with which setting, and the runtimes that it is for."""

    model: str
    maker: str
    arm: str
    runtimes: tuple[str, ...]

    @property
    def path(self) -> Path:
        """Where it lies."""
        words = "-".join([self.maker, *(self.runtimes if self.maker == "autocompress" else ()), self.arm])
        form = "xml" if self.maker == "nncf" and self.arm != "onnx" else "onnx"
        return PLACE / "files" / self.model / "".join(c if c.isalnum() else "-" for c in words) / f"model.{form}"

    @property
    def floats(self) -> bool:
        """Whether it is fp32, and one that the reference is chosen from."""
        return self.maker == "dense" or self.arm == "fp32-fused"


def entries(model: str) -> list[Entry]:
    """Everything that takes part, the dense file first."""
    found = [Entry(model, "dense", "fp32", tuple(PROFILES))]
    if TRANSFORMER[model]:
        found.append(Entry(model, "onnxruntime", "fp32-fused", ("onnxruntime",)))
    for runtime, arms in OURS[model].items():
        found += [Entry(model, "autocompress", arm, (runtime,)) for arm in arms]
    for maker, peer in PEERS.items():
        for arm in peer.arms[model]:
            runtimes = ("openvino",) if maker == "nncf" else ("onnxruntime",)
            found.append(Entry(model, maker, arm, tuple(PROFILES) if (maker, arm) == ("nncf", "onnx") else runtimes))
    return found
