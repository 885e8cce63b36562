"""Compression as two verbs on a model: `shape` makes it smaller, `quantize` gives its weights integers."""
