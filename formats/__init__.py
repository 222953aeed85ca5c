"""Bytes on disk, a module or folder for each file format: index, ranged reads, layout.

Formats know no model. `array` is what they all give: a `StoredArray`, which tells where in a file
its bytes lie; `reading` has the limits for small files that nobody vouches for.
"""
