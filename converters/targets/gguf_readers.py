"""Say what llama.cpp cannot read of a GGUF file, though the format allows it and others read it.

Source of the limits: gguf_init_from_reader in ggml/src/gguf.cpp and GGML_MAX_NAME in
ggml/include/ggml.h of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from weightcast.formats.gguf.layout import GGML_AXES, Entry
from weightcast.text import count, shown

_MAX_NAME_BYTES: Final = 63
_CANNOT: Final = "llama.cpp cannot read the output"


def unread_notes(metadata: Mapping[str, bytes], entries: Sequence[Entry]) -> Iterator[str]:
    """Name the keys and tensors for which llama.cpp refuses a file."""
    if "" in metadata:
        yield f"{_CANNOT}: a metadata key is empty"
    names = {entry.name: entry.name.encode(errors="surrogateescape") for entry in entries}
    unread = {
        f"names of more than {_MAX_NAME_BYTES} bytes": [
            name for name, raw in names.items() if len(raw) > _MAX_NAME_BYTES
        ],
        f"more than {GGML_AXES} axes": [e.name for e in entries if len(e.shape) > GGML_AXES],
    }
    for what, found in unread.items():
        if found:
            tensors = f"{count(len(found), 'tensor')}, for example {shown(found[0])}"
            yield f"{_CANNOT}: {what} ({tensors})"
