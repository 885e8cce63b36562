"""Export: a torch model and its integers become one verified file, and that file other formats.

Names are imported when first asked for, so that picking a file needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autocompress.export.export import export_model, float_graph
    from autocompress.export.folder import from_pretrained
    from autocompress.export.openvino_ir import write_openvino

_HOMES = {
    "export_model": "export",
    "float_graph": "export",
    "from_pretrained": "folder",
    "write_openvino": "openvino_ir",
}

__all__ = ["export_model", "float_graph", "from_pretrained", "write_openvino"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'autocompress.export' has no attribute {name!r}")
    return getattr(importlib.import_module(f"autocompress.export.{_HOMES[name]}"), name)
