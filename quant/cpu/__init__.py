"""The C++ kernels called from Python: `library` loads the shared library and describes its ABI.

Rows of blocks, groups with scales, errors and transposition each have a function there; every one
checks its arrays before it passes their addresses on.
"""
