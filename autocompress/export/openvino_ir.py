"""OpenVINO's own format: a graded ONNX file becomes .xml and .bin, checked in a fresh process.

Of the precisions, OpenVINO's converter keeps static int8 and weights of 8 and 4 bits as they are. It folds fp16 weights
to float32, and stores the weights of dynamic int8 as int32 and multiplies them in float: such layers gain nothing.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openvino
from numpy.typing import NDArray

from autocompress.errors import ExportError
from autocompress.export.fresh import check_deviation, fresh_outputs

#: Precision to OpenVINO's element type of its weights (2026.4).
STORED: Mapping[str, str] = {
    "fp32": "f32",
    "fp16": "f32",
    "int8": "i8",
    "int8-dynamic": "i32",
    "int8-weights": "i8",
    "int4-weights": "u4",
}

#: Precisions whose weights take as many bits there as in the ONNX file.
KEPT = ("fp32", "int8", "int8-weights", "int4-weights")


@dataclass(frozen=True)
class OpenVinoFiles:
    """A written and checked pair of files.

    Attributes:
        xml, bin: graph and weights.
        deviation: relative L2 distance of a fresh process's outputs from those of the graded file.
        weight_bytes: OpenVINO's element type to the bytes of its constants.
    """

    xml: Path
    bin: Path
    deviation: float
    weight_bytes: Mapping[str, int]


def widened(precisions: Iterable[str]) -> tuple[str, ...]:
    """Those precisions that OpenVINO's format does not keep, sorted."""
    return tuple(sorted({precision for precision in precisions if precision not in KEPT}))


def write_openvino(source: Path, path: Path, inputs: Path, expected: NDArray[Any], most: float) -> OpenVinoFiles:
    """Write an ONNX file as OpenVINO's .xml and .bin; weights keep their type, float32 stays float32.

    Args:
        source: the graded ONNX file.
        path: the .xml to write; its .bin lies beside it.
        inputs: .npz of one query.
        expected: the graded file's output for it.
        most: largest allowed deviation; see `fresh.allowed`.

    Raises:
        ExportError: OpenVINO cannot convert the file, or its outputs leave the graded ones.
    """
    try:
        model = openvino.convert_model(str(source))
    except Exception as fault:  # converter and frontends raise several classes that share no public base
        raise ExportError(f"{source}: OpenVINO cannot convert it: {str(fault).strip().splitlines()[-1]}") from fault
    aside = path.with_name("unverified.xml")
    openvino.save_model(model, str(aside), compress_to_fp16=False)
    pairs = [(aside, path), (aside.with_suffix(".bin"), path.with_suffix(".bin"))]
    try:
        deviation = check_deviation(path, fresh_outputs(aside, "openvino", inputs), expected, most)
        for made, wanted in pairs:
            os.replace(made, wanted)
    finally:
        for made, _wanted in pairs:
            made.unlink(missing_ok=True)
    return OpenVinoFiles(path, path.with_suffix(".bin"), deviation, weight_bytes(path))


def weight_bytes(path: Path) -> dict[str, int]:
    """Bytes of the constants of an .xml's model by OpenVINO's element type, such as ``{"f32": 1024, "i8": 4096}``."""
    found: Counter[str] = Counter()
    for operation in openvino.Core().read_model(str(path)).get_ops():
        if operation.get_type_name() == "Constant":
            found[operation.get_element_type().get_type_name()] += operation.get_byte_size()
    return dict(found)
