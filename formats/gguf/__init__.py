"""GGUF files: `read` indexes them, `layout` lays new ones out to the byte.

`header` reads and makes raw metadata, which passes through unchanged whatever its type; `imatrix`
reads importance matrices, of llama.cpp's both formats. Source: ggml's docs/gguf.md.
"""
