"""What is done once to a loaded torch program: constants folded, 2:4 weights handed to sparse kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

#: A 2:4 weight needs at least so many rows and columns, and multiples of them, in every kernel that torch may choose.
SPARSE_ROWS, SPARSE_COLUMNS = 32, 64


def fold_constants(program: fx.GraphModule) -> None:
    """Compute what follows from constants alone, such as packed weights; edits the program.

    Constants that the program itself changes stay as they are, and so does what depends on them.
    """
    known: dict[fx.Node, Tensor] = {}
    for node in program.graph.nodes:
        if node.op == "get_attr" and not any(writes(user) for user in node.users):
            value = _attribute(program, str(node.target))
            if isinstance(value, Tensor):
                known[node] = value
        elif _follows(node, known):
            made = node.target(*fx.map_arg(node.args, known.get), **fx.map_arg(node.kwargs, known.get))
            if isinstance(made, Tensor):
                known[node] = made
    for node in [node for node in known if node.op == "call_function"]:
        if any(user not in known for user in node.users):
            _replace(program, node, known[node])
    program.graph.eliminate_dead_code()
    program.delete_all_unused_submodules()
    _drop_unused(program)
    program.recompile()


def _follows(node: fx.Node, known: dict[fx.Node, Tensor]) -> bool:
    """Whether a node computes from known constants only, the same each time."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return False
    sources = node.all_input_nodes
    random = torch.Tag.nondeterministic_seeded in node.target.tags
    return bool(sources) and all(source in known for source in sources) and not random and not writes(node)


def writes(node: fx.Node) -> bool:
    """Whether a node changes one of its inputs."""
    schema = getattr(node.target, "_schema", None)
    return bool(schema is not None and schema.is_mutable)


def _attribute(program: nn.Module, name: str) -> Any:
    value: Any = program
    for part in name.split("."):
        value = getattr(value, part)
    return value


def _replace(program: fx.GraphModule, node: fx.Node, value: Tensor) -> None:
    """Let a buffer take a node's place."""
    name = f"folded_{node.name}"
    program.register_buffer(name, value)
    with program.graph.inserting_before(node):
        constant = program.graph.get_attr(name)
    constant.meta = {key: node.meta[key] for key in ("nn_module_stack",) if key in node.meta}
    node.replace_all_uses_with(constant)


def _drop_unused(program: fx.GraphModule) -> None:
    """Forget parameters and buffers that no node reads any more."""
    read = {str(node.target) for node in program.graph.nodes if node.op == "get_attr"}
    for prefix, module in list(program.named_modules()):
        for kept in (module._parameters, module._buffers):
            for name in [name for name in kept if f"{prefix}.{name}".lstrip(".") not in read]:
                del kept[name]


def use_sparse_kernels(program: fx.GraphModule) -> None:
    """Keep half-precision weights of linears that are 2:4 in the form that a GPU's sparse kernels take; edits it.

    Of four neighbouring weights at least two are 0 (`torch.sparse.to_sparse_semi_structured`).
    """
    for node in program.graph.nodes:
        if node.target is not torch.ops.aten.linear.default or node.args[1].op != "get_attr":
            continue
        owner, _, name = str(node.args[1].target).rpartition(".")
        module = program.get_submodule(owner)
        weight = getattr(module, name)
        if is_two_in_four(weight):
            sparse = nn.Parameter(torch.sparse.to_sparse_semi_structured(weight.detach()), requires_grad=False)
            module._buffers.pop(name, None)
            module.register_parameter(name, sparse)


def is_two_in_four(weight: Tensor) -> bool:
    """Whether a weight ``(out, in)`` is one that 2:4 kernels take."""
    if weight.layout != torch.strided or weight.dtype not in (torch.float16, torch.bfloat16) or weight.dim() != 2:
        return False
    if weight.shape[0] % SPARSE_ROWS or weight.shape[1] % SPARSE_COLUMNS:
        return False
    return bool(((weight.reshape(-1, 4) != 0).sum(1) <= 2).all())
