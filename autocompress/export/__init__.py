"""Export: a torch model and its integers become one verified file."""

from __future__ import annotations

from autocompress.export.export import export_model, float_graph

__all__ = ["export_model", "float_graph"]
