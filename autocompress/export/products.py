"""How many bits of a weight a runtime multiplies exactly with 8-bit inputs on this machine.

Processors without dot products of bytes (x86 without VNNI: Intel before Cascade Lake, AMD before Zen 4) multiply an
unsigned by a signed byte, and add two of these products in 16 bits. 2·255·127 does not fit: the sum is cut off, and a
file with 8-bit weights answers something else than it says. With 7 bits, 2·255·64 fits.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from autocompress.plan import Plan
from autocompress.runtimes import RUNTIMES, Device, open_session

#: Precisions whose kernels multiply bytes by bytes.
BYTES = ("int8", "int8-dynamic")

#: Bits that a weight may have where products are cut off.
NARROW = 7

#: Rows, inputs and outputs of the product that is tried: enough for an integer kernel to be worth it.
SHAPE = (32, 256, 256)


@cache
def exact_bits(runtime: str, device: Device = "cpu") -> int:
    """Bits up to which weights are multiplied exactly with 8-bit inputs: 8, or 7 where products are cut off.

    Tried once per process with the largest product that there is; on processors only, since GPUs add in 32 bits.
    """
    if device != "cpu" or runtime not in RUNTIMES:
        return 8
    found = _by_torch() if RUNTIMES[runtime].formats[0] == "pt2" else _by_file(runtime)
    return 8 if np.allclose(found, 255.0 * 127.0 * SHAPE[1], rtol=1e-3) else NARROW


def exact(plan: Plan, runtime: str, device: Device = "cpu") -> Plan:
    """The plan with weights of 8-bit kernels in no more bits than the runtime multiplies exactly here."""
    wide = {
        name: own.quantize
        for name, own in plan.layers.items()
        if own.quantize is not None and own.quantize.precision in BYTES and own.quantize.bits > NARROW
    }
    if not wide or exact_bits(runtime, device) > NARROW:
        return plan
    narrow = {
        name: replace(plan.layers[name], quantize=replace(quantize, weight_bits=NARROW))
        for name, quantize in wide.items()
    }
    return replace(plan, layers={**plan.layers, **narrow})


def _by_file(runtime: str) -> NDArray[np.float32]:
    """What a file answers whose inputs are all 255 and whose weights are all 127."""
    rows, into, out = SHAPE
    constants = {
        "scale": np.array(1.0, dtype=np.float32),
        "zero": np.array(0, dtype=np.uint8),
        "weight": np.full((into, out), 127, dtype=np.int8),
        "scales": np.ones(out, dtype=np.float32),
        "zeros": np.zeros(out, dtype=np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["codes"]),
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["values"]),
        helper.make_node("DequantizeLinear", ["weight", "scales", "zeros"], ["matrix"], axis=1),
        helper.make_node("MatMul", ["values", "matrix"], ["y"]),
    ]
    ports = [
        helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, rows, w]) for n, w in (("x", into), ("y", out))
    ]
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "products", ports[:1], ports[1:], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "products.onnx"
        path.write_bytes(model.SerializeToString())
        session = open_session(path, runtime, 1)
        return session.run({"x": np.full((1, rows, into), 255.0, dtype=np.float32)})[0]


def _by_torch() -> NDArray[np.float32]:
    """The same by the convolution of torch's programs; their linears multiply signed bytes by signed ones."""
    rows, into, out = SHAPE
    codes = torch.full((1, into, rows, 1), 255, dtype=torch.uint8)
    scales, window = torch.ones(out), ([1, 1], [0, 0], [1, 1], 1)
    packed = torch.ops.onednn.qconv_prepack(
        torch.full((out, into, 1, 1), 127, dtype=torch.int8), scales, 1.0, 0, *window
    )
    zeros = torch.zeros(out, dtype=torch.int64)
    made = torch.ops.onednn.qconv_pointwise(
        codes, 1.0, 0, packed, scales, zeros, None, *window, 1.0, 0, torch.float32, "none", [], ""
    )
    return np.asarray(made.numpy())
