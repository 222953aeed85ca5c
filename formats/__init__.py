"""Bytes on disk, one module a file format: index, ranged reads, layout. Knows no model."""
