"""The layouts of packed integers, by name."""

from __future__ import annotations

from typing import Final

from weightcast.formats.packed_awq import Awq
from weightcast.formats.packed_compressed import CompressedTensors
from weightcast.formats.packed_gptq import Gptq
from weightcast.formats.packed_parts import PackedLayout
from weightcast.formats.packed_weightcast import Weightcast

_ALL: Final[tuple[PackedLayout, ...]] = (
    CompressedTensors(),
    Gptq("gptq", less=1),
    Gptq("gptq_v2", less=0),
    Awq(),
    Weightcast(),
)
LAYOUTS: Final = {layout.name: layout for layout in _ALL}
