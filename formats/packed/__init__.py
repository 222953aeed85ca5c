"""The layouts of packed integers, by name."""

from __future__ import annotations

from typing import Final

from weightcast.formats.packed.awq import Awq
from weightcast.formats.packed.compressed_tensors import CompressedTensors
from weightcast.formats.packed.gptq import GPTQ_LAYOUTS
from weightcast.formats.packed.layout import PackedLayout
from weightcast.formats.packed.weightcast import Weightcast

_ALL: Final[tuple[PackedLayout, ...]] = (
    CompressedTensors(),
    *GPTQ_LAYOUTS.values(),
    Awq(),
    Weightcast(),
)
LAYOUTS: Final = {layout.name: layout for layout in _ALL}
