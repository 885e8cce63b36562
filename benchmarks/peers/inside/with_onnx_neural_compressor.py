"""int8 by onnx-neural-compressor 1.0, in its own environment: python with_onnx_neural_compressor.py JOB.json.

The package that Intel Neural Compressor's ONNX part became. Settings are those of its BERT example: fused by ONNX
Runtime's optimizer, outputs of MatMul and Attention in float; SmoothQuant is its own addition.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx
import onnxruntime
import samples
from onnx_neural_compressor import data_reader
from onnx_neural_compressor.quantization import QuantFormat, config, quantize, tuning
from onnxruntime.transformers import optimizer
from onnxruntime.transformers.fusion_options import FusionOptions

KEEP_FLOAT = {"optypes_to_exclude_output_quant": ["MatMul", "Gemm", "Attention", "FusedGemm"]}


class Reader(data_reader.CalibrationDataReader):
    """Hands out the samples one by one, from the start again after `rewind`; `equal` pads them to one length."""

    def __init__(self, path: str, equal: bool = False) -> None:
        self.samples = samples.of_equal_length(samples.read(path)) if equal else samples.read(path)
        self.rewind()

    def rewind(self) -> None:
        """Begin again."""
        self.rest = iter(self.samples)

    def get_next(self):
        """The next sample, or None."""
        return next(self.rest, None)


def fused(job: dict, folder: str) -> str:
    """The dense file; a transformer with fused attention, as in the examples."""
    size, path = job["transformer"], str(Path(folder) / "fused.onnx")
    if not size:
        return job["dense"]
    options = FusionOptions("bert")
    options.enable_embed_layer_norm = False
    found = optimizer.optimize_model(
        job["dense"], "bert", num_heads=size["heads"], hidden_size=size["hidden"], optimization_options=options
    )
    found.save_model_to_file(path)
    return path


def static(job: dict, **extra) -> None:
    """static, QDQ, U8S8 per channel; for transformers fused, and outputs of MatMul stay float"""
    options = {**(KEEP_FLOAT if job["transformer"] else {}), **extra}
    with tempfile.TemporaryDirectory() as folder:
        settings = config.StaticQuantConfig(
            calibration_data_reader=Reader(job["calibration"], equal=bool(job["transformer"] and extra)),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            calibration_sampling_size=256,
            extra_options=options,
        )
        quantize(fused(job, folder), job["out"], settings)


def smooth(job: dict) -> None:
    """as static, with SmoothQuant at its default of 0.5; token samples padded to one length, which it needs"""
    static(job, SmoothQuant=True)


def dynamic(job: dict) -> None:
    """dynamic, fused, QInt8 per channel"""
    with tempfile.TemporaryDirectory() as folder:
        quantize(fused(job, folder), job["out"], config.DynamicQuantConfig(per_channel=True))


def tuned(job: dict) -> None:
    """accuracy-driven: static (transformers QOperator as in its BERT example, others QDQ), tuned on validation until at
    most 1 % (relative) is lost"""

    def grade(model) -> float:
        found = model if isinstance(model, str) else model.SerializeToString()
        session = onnxruntime.InferenceSession(found, providers=["CPUExecutionProvider"])
        return samples.accuracy(lambda sample: session.run(None, sample)[0], job["validation"])

    levels = onnxruntime.GraphOptimizationLevel  # what is fused is optimized already
    with tempfile.TemporaryDirectory() as folder:
        candidates = config.StaticQuantConfig.get_config_set_for_tuning(
            quant_format=QuantFormat.QOperator if job["transformer"] else QuantFormat.QDQ,
            calibration_sampling_size=256,
            extra_options=KEEP_FLOAT if job["transformer"] else {},
        )
        made = tuning.autotune(
            model_input=fused(job, folder),
            tune_config=tuning.TuningConfig(config_set=candidates),
            eval_fn=grade,
            calibration_data_reader=Reader(job["calibration"]),
            optimization_level=levels.ORT_DISABLE_ALL if job["transformer"] else levels.ORT_ENABLE_BASIC,
        )
        onnx.save(made, job["out"])


if __name__ == "__main__":
    samples.serve({"static": static, "smooth": smooth, "dynamic": dynamic, "tuned": tuned})
