"""int8 by Intel Neural Compressor 2.6, in its own environment: python with_neural_compressor.py JOB.json.

2.6 is the last release that quantizes ONNX files; from 3.0 on it holds torch, JAX and TensorFlow only, and the ONNX
part is a package of its own, see `with_onnx_neural_compressor.py`. Its documentation gives `PostTrainingQuantConfig`,
static or dynamic, and with an `eval_func` its accuracy-driven tuning, which stops at the first configuration that loses
no more than 1 % (relative). Its examples for BERT fuse with ONNX Runtime's optimizer first, and leave outputs of MatMul
and Attention in float.
"""

from __future__ import annotations

import onnx
import onnxruntime
import samples
from neural_compressor import PostTrainingQuantConfig, quantization
from onnxruntime.transformers import optimizer
from onnxruntime.transformers.fusion_options import FusionOptions

KEEP_FLOAT = {"optypes_to_exclude_output_quant": ["MatMul", "Gemm", "Attention", "FusedGemm"]}


class Loader:
    """Samples with a class beside them, one per batch, as Neural Compressor wants them."""

    batch_size = 1

    def __init__(self, path: str) -> None:
        self.samples = samples.read(path)

    def __iter__(self):
        """Inputs in the file's order, and a class that calibration does not look at."""
        return iter((sample, 0) for sample in self.samples)


def fused(job: dict) -> onnx.ModelProto:
    """The dense model; a transformer with fused attention, as in the examples."""
    size = job["transformer"]
    if not size:
        return onnx.load(job["dense"])
    options = FusionOptions("bert")
    options.enable_embed_layer_norm = False
    found = optimizer.optimize_model(
        job["dense"], "bert", num_heads=size["heads"], hidden_size=size["hidden"], optimization_options=options
    )
    return found.model


def write(job: dict, model: onnx.ModelProto, eval_func=None, **settings) -> None:
    """Quantize and save; raises where Neural Compressor finds nothing."""
    loader = Loader(job["calibration"]) if settings["approach"] != "dynamic" else None
    config = PostTrainingQuantConfig(calibration_sampling_size=256, **settings)
    made = quantization.fit(model, config, calib_dataloader=loader, eval_func=eval_func)
    if made is None:
        raise RuntimeError("Neural Compressor found no configuration within its accuracy criterion")
    made.save(job["out"])


def as_in_its_example(job: dict) -> dict:
    """Static settings: QOperator and float outputs for transformers; QDQ for others, whose Pad QOperator refuses."""
    if job["transformer"]:
        return {"approach": "static", "recipes": KEEP_FLOAT}
    return {"approach": "static", "quant_format": "QDQ"}


def static(job: dict) -> None:
    """static, QDQ, on the model as exported; for transformers outputs of MatMul stay float"""
    write(job, onnx.load(job["dense"]), **{**as_in_its_example(job), "quant_format": "QDQ"})


def static_fused(job: dict) -> None:
    """static, QOperator, as in its BERT example: fused by ONNX Runtime's optimizer, outputs of MatMul stay float"""
    write(job, fused(job), **as_in_its_example(job))


def dynamic(job: dict) -> None:
    """dynamic, fused by ONNX Runtime's optimizer"""
    write(job, fused(job), approach="dynamic")


def tuned(job: dict) -> None:
    """accuracy-driven: static (transformers as in its BERT example, others QDQ), tuned on validation until at most 1 %
    (relative) is lost"""

    def grade(model: onnx.ModelProto) -> float:
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        return samples.accuracy(lambda sample: session.run(None, sample)[0], job["validation"])

    write(job, fused(job), grade, **as_in_its_example(job))


if __name__ == "__main__":
    samples.serve({"static": static, "static-fused": static_fused, "dynamic": dynamic, "tuned": tuned})
