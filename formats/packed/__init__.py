"""The packed layouts of directories, by name: a layout is a module here and a word below."""

from __future__ import annotations

from typing import Final

from weightcast.formats.packed.awq import Awq
from weightcast.formats.packed.compressed_tensors import CompressedTensors
from weightcast.formats.packed.fp8_checkpoint import Fp8Checkpoint
from weightcast.formats.packed.gptq import Gptq
from weightcast.formats.packed.layout import PackedLayout
from weightcast.formats.packed.weightcast import Weightcast

_ALL: Final[tuple[PackedLayout, ...]] = (
    CompressedTensors(),
    Gptq("gptq", less=1),
    Gptq("gptq_v2", less=0),
    Awq(),
    Fp8Checkpoint(),
    Weightcast(),
)
LAYOUTS: Final = {layout.name: layout for layout in _ALL}
