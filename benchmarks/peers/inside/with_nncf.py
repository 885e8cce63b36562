"""int8 by NNCF, in its own environment: python with_nncf.py JOB.json. What it writes runs in OpenVINO.

OpenVINO's documentation recommends for a CPU: `nncf.quantize` on the OpenVINO model, about 300 calibration samples,
`model_type=TRANSFORMER` for transformers; then, where accuracy is short, the mixed preset, the slower bias correction,
and no overflow fix on processors with VNNI.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import nncf
import onnx
import onnxruntime
import openvino
import samples
from nncf import AdvancedQuantizationParameters, ModelType, QuantizationPreset
from nncf.quantization.advanced_parameters import OverflowFix


def quantized(model, job: dict, **settings):
    """The model in int8, calibrated with all samples of the job."""
    found = samples.read(job["calibration"])
    kind = ModelType.TRANSFORMER if job["transformer"] else None
    return nncf.quantize(model, nncf.Dataset(found), subset_size=len(found), model_type=kind, **settings)


def to_openvino(job: dict, **settings) -> None:
    """Write OpenVINO IR."""
    model = openvino.Core().read_model(job["dense"])
    openvino.save_model(quantized(model, job, **settings), job["out"], compress_to_fp16=False)


def default(job: dict) -> None:
    """nncf.quantize as it is: fast bias correction, and the preset that the model type brings (mixed for
    transformers, performance otherwise)"""
    to_openvino(job)


def performance(job: dict) -> None:
    """preset performance (symmetric activations), fast bias correction, target CPU, no overflow fix"""
    to_openvino(job, preset=QuantizationPreset.PERFORMANCE, **vnni())


def accurate(job: dict) -> None:
    """preset mixed, slow bias correction, target CPU, no overflow fix"""
    to_openvino(job, preset=QuantizationPreset.MIXED, fast_bias_correction=False, **vnni())


def vnni() -> dict:
    """What the documentation gives a CPU with VNNI."""
    no_fix = AdvancedQuantizationParameters(overflow_fix=OverflowFix.DISABLE)
    return {"target_device": nncf.TargetDevice.CPU, "advanced_parameters": no_fix}


def as_onnx(job: dict) -> None:
    """nncf.quantize as it is on the ONNX model (constants folded by ONNX Runtime first: NNCF needs to
    see weights), which stays ONNX with QDQ"""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "folded.onnx")
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = path
        onnxruntime.InferenceSession(job["dense"], options, providers=["CPUExecutionProvider"])
        onnx.save(quantized(onnx.load(path), job), job["out"])


if __name__ == "__main__":
    samples.serve({"default": default, "performance": performance, "accurate": accurate, "onnx": as_onnx})
