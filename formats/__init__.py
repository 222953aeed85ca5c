"""Bytes on disk: one module a file format, each an index, ranged reads and a layout. Knows no model."""
