"""int8 by ONNX Runtime's own quantizer, in its own environment: python with_onnxruntime.py JOB.json.

Its documentation recommends: pre-process (symbolic shapes, graph optimization); dynamic quantization for transformers,
after its transformer optimizer, which makes fused attention that quantizes as a whole; static quantization in QDQ for
convolutional networks, S8S8 first; per-channel weights where accuracy is short.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx
import samples
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers import optimizer
from onnxruntime.transformers.fusion_options import FusionOptions


class Reader(CalibrationDataReader):
    """Hands out the samples one by one, as ONNX Runtime asks for them; `equal` pads them to one length."""

    def __init__(self, path: str, equal: bool = False) -> None:
        self.rest = iter(samples.of_equal_length(samples.read(path)) if equal else samples.read(path))

    def get_next(self):
        """The next sample, or None."""
        return next(self.rest, None)


def prepared(job: dict, folder: str) -> str:
    """The file after the documented pre-processing."""
    path = str(Path(folder) / "prepared.onnx")
    quant_pre_process(job["dense"], path, auto_merge=True, skip_symbolic_shape=not job["transformer"])
    return path


def fused(job: dict, folder: str) -> str:
    """The file after the transformer optimizer, in fp32."""
    path, size = str(Path(folder) / "fused.onnx"), job["transformer"]
    options = FusionOptions("bert")
    options.enable_embed_layer_norm = False  # it wants 32-bit token numbers
    made = optimizer.optimize_model(
        job["dense"], "bert", num_heads=size["heads"], hidden_size=size["hidden"], optimization_options=options
    )
    made.save_model_to_file(path)
    return path


def fp32_fused(job: dict) -> None:
    """no integers: fp32 after onnxruntime.transformers.optimizer"""
    Path(job["out"]).write_bytes(Path(fused(job, str(Path(job["out"]).parent))).read_bytes())


def dynamic(job: dict) -> None:
    """pre-processed, quantize_dynamic, QInt8 per channel"""
    with tempfile.TemporaryDirectory() as folder:
        quantize_dynamic(prepared(job, folder), job["out"], per_channel=True, weight_type=QuantType.QInt8)


def dynamic_fused(job: dict) -> None:
    """onnxruntime.transformers.optimizer, quantize_dynamic, QInt8 per channel"""
    floats = {"DefaultTensorType": onnx.TensorProto.FLOAT}  # shape inference does not know the fused operators
    with tempfile.TemporaryDirectory() as folder:
        path = fused(job, folder)
        quantize_dynamic(path, job["out"], per_channel=True, weight_type=QuantType.QInt8, extra_options=floats)


def static(job: dict, equal: bool = False, **settings) -> None:
    """pre-processed, quantize_static with its defaults (QDQ, S8S8, min-max, all operators), per channel"""
    with tempfile.TemporaryDirectory() as folder:
        reader = Reader(job["calibration"], equal)
        settings = {"quant_format": QuantFormat.QDQ, "per_channel": True, **settings}
        quantize_static(prepared(job, folder), job["out"], reader, **settings)


def static_unsigned(job: dict) -> None:
    """as static, activations QUInt8 (U8S8)"""
    static(job, activation_type=QuantType.QUInt8)


def static_matmul(job: dict) -> None:
    """as static, U8S8, only MatMul and Gemm"""
    static(job, activation_type=QuantType.QUInt8, op_types_to_quantize=["MatMul", "Gemm"])


def static_entropy(job: dict) -> None:
    """as static, U8S8, calibrated by entropy"""
    static(job, activation_type=QuantType.QUInt8, calibrate_method=CalibrationMethod.Entropy)


def static_percentile(job: dict) -> None:
    """as static, U8S8, calibrated by percentile; of transformers only MatMul and Gemm, on samples padded to one length
    (the histograms need it)"""
    only = {"op_types_to_quantize": ["MatMul", "Gemm"], "equal": True} if job["transformer"] else {}
    static(job, activation_type=QuantType.QUInt8, calibrate_method=CalibrationMethod.Percentile, **only)


if __name__ == "__main__":
    samples.serve(
        {
            "fp32-fused": fp32_fused,
            "dynamic": dynamic,
            "dynamic-fused": dynamic_fused,
            "static": static,
            "static-unsigned": static_unsigned,
            "static-matmul": static_matmul,
            "static-entropy": static_entropy,
            "static-percentile": static_percentile,
        }
    )
