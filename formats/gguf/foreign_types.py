"""Numbers of tensor types that GGUF files have and ggml does not read: given up, or of forks.

Forks number their types as they like, so one number can be several; what the file says of its
architecture tells some apart. Sources: enum ggml_type in ggml.h of ggml, ik_llama.cpp, the
llama.cpp of bitnet.cpp and of PrismML; fs/ggml/type.go of ollama.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class ForeignType:
    """A type by name ("" where several have its number), whose it is, and what to do about it."""

    name: str
    origin: str
    remedy: str

    def told(self, number: int) -> str:
        """Put the type into words."""
        named = f"the type {self.name} ({number}), {self.origin}" if self.name else ""
        return f"{named or f'type {number}, {self.origin}'}; {self.remedy}"


_AGAIN: Final = "make the file again from the original weights"
_REPACKED: Final = "take the Q4_0 file of the model: llama.cpp repacks it as it loads it"
_NO_LONGER: Final = "which ggml has no longer in files"
_IN_MEMORY: Final = "which ggml has in memory only"
_GIVEN_UP: Final = {
    4: ForeignType("Q4_2", _NO_LONGER, _AGAIN),
    5: ForeignType("Q4_3", _NO_LONGER, _AGAIN),
    9: ForeignType("Q8_1", _IN_MEMORY, _AGAIN),
    15: ForeignType("Q8_K", _IN_MEMORY, _AGAIN),
    31: ForeignType("Q4_0_4_4", _NO_LONGER, _REPACKED),
    32: ForeignType("Q4_0_4_8", _NO_LONGER, _REPACKED),
    33: ForeignType("Q4_0_8_8", _NO_LONGER, _REPACKED),
}
_BITNET: Final = {
    36: ForeignType("I2_S", "a type of bitnet.cpp", _AGAIN),
    37: ForeignType("I8_S", "a type of bitnet.cpp", _AGAIN),
    38: ForeignType("TL1", "a type of bitnet.cpp", _AGAIN),
    39: ForeignType("TL2", "a type of bitnet.cpp", _AGAIN),
}
_BITNET_OR_GIVEN_UP: Final = {
    36: ForeignType("I2_S", "a type of bitnet.cpp (or IQ4_NL_4_4, which ggml gave up)", _AGAIN),
    37: ForeignType("I8_S", "a type of bitnet.cpp (or IQ4_NL_4_8, which ggml gave up)", _AGAIN),
    38: ForeignType("TL1", "a type of bitnet.cpp (or IQ4_NL_8_8, which ggml gave up)", _AGAIN),
}
# ollama's first files of gpt-oss, from before ggml had a number for the type.
_OLLAMA: Final = {
    4: ForeignType(
        "MXFP4",
        "as ollama first numbered it",
        "take the model's file for llama.cpp, or pull it again with a newer ollama",
    )
}
_OF_ARCHITECTURES: Final = {"bitnet": _BITNET, "gptoss": _OLLAMA, "gpt-oss": _OLLAMA}
_IK_NAMES: Final = {
    **{97: "Q8_0_X4", 98: "Q8_1_X4", 99: "Q8_2_X4"},
    **{133: "Q6_0", 134: "IQ1_BN", 135: "IQ2_BN", 136: "Q8_K64"},
    **{137: "IQ2_K", 138: "IQ3_K", 139: "IQ4_K", 140: "IQ5_K", 141: "IQ6_K"},
    **{144: "IQ4_KS", 145: "IQ2_KS", 146: "IQ4_KSS", 147: "Q8_K16", 148: "Q8_K32"},
    **{149: "Q8_KR8", 150: "Q8_K128", 151: "Q8_KV", 152: "IQ5_KS"},
    **{153: "IQ2_KT", 154: "IQ3_KT", 155: "IQ4_KT", 156: "IQ3_KS", 157: "IQ2_KL", 158: "IQ1_KT"},
}
_IK_REPACKED_NAMES: Final = {
    **{202: "Q4_0_R8", 206: "Q5_0_R4", 208: "Q8_0_R8"},
    **{210: "Q2_K_R4", 211: "Q3_K_R4", 212: "Q4_K_R4", 213: "Q5_K_R4", 214: "Q6_K_R4"},
    **{216: "IQ2_XXS_R4", 217: "IQ2_XS_R4", 218: "IQ3_XXS_R4", 219: "IQ1_S_R4"},
    **{220: "IQ4_NL_R4", 221: "IQ3_S_R4", 222: "IQ2_S_R4", 223: "IQ4_XS_R8", 229: "IQ1_M_R4"},
    **{230: "BF16_R16", 233: "Q6_0_R4", 335: "IQ2_BN_R4"},
    **{337: "IQ2_K_R4", 338: "IQ3_K_R4", 339: "IQ4_K_R4", 340: "IQ5_K_R4"},
    **{344: "IQ4_KS_R4", 352: "IQ5_KS_R4", 353: "MXFP4_R8"},
    **{397: "Q8_K_R16", 398: "Q8_KV_R8", 399: "Q8_K_R8"},
}
_IK: Final = {
    number: ForeignType(
        name,
        "a type of ik_llama.cpp",
        f"{_AGAIN}, or write its values out with ik_llama.cpp "
        "(llama-quantize --allow-requantize IN OUT F32)",
    )
    for number, name in _IK_NAMES.items()
}
_IK_REPACKED: Final = {
    number: ForeignType(
        name,
        "a type that ik_llama.cpp repacks to",
        "take the file that was not repacked, or make it again",
    )
    for number, name in _IK_REPACKED_NAMES.items()
}
_PRISM: Final = {
    142: ForeignType("PQ2_0", "a type of PrismML's llama.cpp (or IQ2_TN of ik_llama.cpp)", _AGAIN),
    143: ForeignType("PTQ1_0", "a type of PrismML's llama.cpp (or IQ1_TN of ik_llama.cpp)", _AGAIN),
}
# Forks that have not settled which number is which of their types.
_TURBOQUANT: Final = range(43, 48)
_ROCMFPX: Final = range(100, 109)
_UNSETTLED: Final = {
    **{
        n: ForeignType("", "of a newer ggml, or of a fork with TurboQuant", _AGAIN)
        for n in _TURBOQUANT
    },
    **{n: ForeignType("", "of a fork of llama.cpp with ROCmFPX", _AGAIN) for n in _ROCMFPX},
}
_FOREIGN: Final = {
    **_GIVEN_UP,
    **_BITNET_OR_GIVEN_UP,
    **_UNSETTLED,
    **_IK,
    **_PRISM,
    **_IK_REPACKED,
}


def foreign_types(architecture: object) -> Mapping[int, ForeignType]:
    """List the types that are not ggml's, by number, in files of some architecture.

    A number of bitnet.cpp became MXFP4's later.
    """
    if isinstance(architecture, str):
        for name, own in _OF_ARCHITECTURES.items():
            if architecture.startswith(name):
                return {**_FOREIGN, **own}
    return _FOREIGN
