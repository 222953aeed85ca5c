"""The rules of llama-quantize as a table: which tensors get another type than their recipe's.

A recipe has a base type. For each category of tensors the table lists rules: recipes, a type and
conditions, all of which must hold. The first rule that holds gives the type, without one it is the
base type. Source: llama_tensor_get_type_impl, tensor_type_fallback, tensor_allows_quantization and
tensor_requires_imatrix in src/llama-quant.cpp of llama.cpp (llama-cpp-python 0.3.36).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from weightcast.quant.types import (
    IQ1_M,
    IQ1_S,
    IQ2_S,
    IQ2_XS,
    IQ2_XXS,
    IQ3_S,
    IQ3_XXS,
    IQ4_NL,
    IQ4_XS,
    MXFP4,
    Q2_0,
    Q2_K,
    Q3_K,
    Q4_0,
    Q4_1,
    Q4_K,
    Q5_0,
    Q5_1,
    Q5_K,
    Q6_K,
    Q8_0,
    TQ1_0,
    TQ2_0,
    QuantType,
)


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The facts that the rules ask for; `groups` is query heads per key-value head (0: unknown)."""

    architecture: str
    n_layer: int
    n_expert: int = 0
    groups: int = 1
    has_importance: bool = False

    @property
    def is_70b(self) -> bool:
        """True if llama.cpp takes the model for a 70B one (LLM_TYPE_70B)."""
        if self.architecture == "llama":
            return self.n_layer == 80 and self.groups != 1
        return (self.architecture, self.n_layer) in _70B


_70B: Final = {("qwen2", 80), ("deci", 80), ("olmo", 80), ("jais2", 68)}


@dataclass(frozen=True, slots=True)
class Case:
    """A tensor that a rule is asked about.

    `rank` counts the tensors of its category before it; `layer` is the same in dense models, and
    the number in its name where there are experts. `n_layer` is what both are compared with.
    """

    facts: ModelFacts
    base: QuantType
    shape: tuple[int, ...]
    rank: int
    layer: int
    n_layer: int


Condition = Callable[[Case], bool]


def first_eighth(case: Case) -> bool:
    return case.layer < case.n_layer // 8


def first_eighth_by_rank(case: Case) -> bool:
    return case.rank < case.n_layer // 8


def first_sixteenth(case: Case) -> bool:
    return case.layer < case.n_layer // 16


def middle(case: Case) -> bool:
    """Neither the first nor the last eighth."""
    return case.n_layer // 8 <= case.layer < 7 * case.n_layer // 8


def more_bits(case: Case) -> bool:
    """The first and the last eighth and every third layer between them."""
    return not middle(case) or (case.layer - case.n_layer // 8) % 3 == 2


def first_two(case: Case) -> bool:
    return case.layer < 2


def first_four(case: Case) -> bool:
    return case.layer < 4


def shared_heads(case: Case) -> bool:
    """Four or more query heads to a key-value head, whose matrices are small then."""
    return case.facts.groups >= 4


def shared_heads_or_experts(case: Case) -> bool:
    return shared_heads(case) or case.facts.n_expert >= 4


def eight_experts(case: Case) -> bool:
    return case.facts.n_expert == 8


def not_eight_experts(case: Case) -> bool:
    return case.facts.n_expert != 8


def importance(case: Case) -> bool:
    return case.facts.has_importance


def no_importance(case: Case) -> bool:
    return not case.facts.has_importance


def falcon(case: Case) -> bool:
    return case.facts.architecture == "falcon"


def not_falcon(case: Case) -> bool:
    return not falcon(case)


def does_not_fit(case: Case) -> bool:
    return not case.base.fits(case.shape[-1])


def stacked(case: Case) -> bool:
    """Several matrices in one tensor, one for each expert."""
    return len(case.shape) > 2 and case.shape[-3] > 1


def stacked_experts(case: Case) -> bool:
    """The same outside the feed-forward network, where Bailing stacks what are no experts."""
    return stacked(case) and case.facts.architecture != "bailingmoe3"


@dataclass(frozen=True, slots=True)
class Rule:
    """Recipes, their type, and the conditions on model and layer; no recipes: all of them."""

    recipes: frozenset[str]
    type: QuantType
    conditions: tuple[Condition, ...]

    def applies(self, recipe: str, case: Case) -> bool:
        named = not self.recipes or recipe in self.recipes
        return named and all(condition(case) for condition in self.conditions)


def _rule(recipes: str, quant_type: QuantType, *conditions: Condition) -> Rule:
    return Rule(frozenset(recipes.split()), quant_type, conditions)


# Name fragments and their categories; the first that is found in a tensor's name counts.
CATEGORIES: Final = (
    (re.compile(r"^output\.weight$"), "output"),
    (re.compile(r"^(per_layer_)?token_embd\.weight$"), "token_embd"),
    (re.compile(r"attn_(qkv|kv_b|v)\.weight"), "attn_v"),
    (re.compile(r"attn_k\.weight"), "attn_k"),
    (re.compile(r"attn_q\.weight"), "attn_q"),
    (re.compile(r"attn_output\.weight"), "attn_output"),
    (re.compile(r"ffn_up"), "ffn_up"),
    (re.compile(r"ffn_gate"), "ffn_gate"),
    (re.compile(r"ffn_down"), "ffn_down"),
    (re.compile(r""), "other"),
)
_LOW = "IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ2_M"
_MXFP4_MOE = (_rule("MXFP4_MOE", MXFP4, stacked_experts), _rule("MXFP4_MOE", Q8_0))
_MXFP4_MOE_FFN = (_rule("MXFP4_MOE", MXFP4, stacked), _rule("MXFP4_MOE", Q8_0))
# Where the output shares the embedding table, the table's category is "output".
RULES: Final[dict[str, tuple[Rule, ...]]] = {
    "output": (
        _rule("MXFP4_MOE", Q8_0),
        _rule("", Q8_0, falcon),
        _rule("", Q8_0, does_not_fit),
        _rule(f"{_LOW} IQ3_XXS", Q5_K),
        _rule("Q8_0", Q8_0),
        _rule("", Q6_K),
    ),
    "token_embd": (
        *_MXFP4_MOE,
        _rule("IQ1_S IQ1_M IQ2_XXS IQ2_XS", Q2_K),
        _rule("IQ2_S IQ2_M IQ3_XXS", IQ3_S),
        _rule("TQ1_0 TQ2_0 Q2_0", Q4_K),
    ),
    "attn_v": (
        *_MXFP4_MOE,
        _rule(_LOW, Q4_K, shared_heads_or_experts),
        _rule("IQ2_S IQ2_M", IQ3_S),
        _rule(_LOW, Q2_K),
        _rule("", Q8_0, eight_experts),
        _rule("Q2_K Q2_K_S IQ3_XXS IQ3_XS IQ3_S", Q4_K, shared_heads),
        _rule("Q2_K", Q3_K),
        _rule("IQ3_XXS", IQ3_S, no_importance),
        _rule("IQ3_M", Q4_K),
        _rule("Q3_K_M", Q5_K, first_two),
        _rule("Q3_K_M", Q4_K),
        _rule("Q3_K_L", Q5_K),
        _rule("IQ4_NL IQ4_XS", Q5_K, shared_heads),
        _rule("Q4_K_M Q5_K_M", Q6_K, more_bits),
        _rule("Q4_K_S", Q5_K, first_four),
    ),
    "attn_k": (
        *_MXFP4_MOE,
        _rule(_LOW, Q4_K, eight_experts),
        _rule("", Q8_0, eight_experts),
        _rule("IQ3_XS", IQ3_XXS),
        _rule("IQ3_XXS", IQ2_S),
    ),
    "attn_q": (
        *_MXFP4_MOE,
        _rule("IQ3_XS", IQ3_XXS),
        _rule("IQ3_XXS", IQ2_S),
    ),
    "attn_output": (
        *_MXFP4_MOE,
        _rule(_LOW, Q5_K, eight_experts),
        _rule("IQ1_S IQ1_M", IQ2_XXS),
        _rule("IQ2_S IQ2_M", IQ3_S),
        _rule("Q3_K_L", Q4_K, falcon),
        _rule(
            "Q2_K Q3_K_S Q3_K_M Q4_K_S Q4_K_M IQ3_XXS IQ3_XS IQ3_S IQ3_M IQ4_NL IQ4_XS",
            Q5_K,
            not_falcon,
            eight_experts,
        ),
        _rule("Q2_K", Q3_K, not_falcon, not_eight_experts),
        _rule("IQ3_XXS", IQ3_S, not_falcon, not_eight_experts),
        _rule("Q3_K_M IQ3_M", Q4_K, not_falcon, not_eight_experts),
        _rule("Q3_K_L", Q5_K, not_falcon, not_eight_experts),
    ),
    "ffn_down": (
        *_MXFP4_MOE_FFN,
        _rule("IQ2_S IQ2_M", IQ3_S, first_eighth_by_rank),
        _rule("IQ1_S IQ1_M IQ2_XXS IQ2_XS", Q2_K, first_eighth_by_rank),
        _rule("Q2_K", Q3_K),
        _rule("Q2_K_S", Q4_K, first_eighth),
        _rule("IQ3_XXS", Q4_K, no_importance, first_eighth),
        _rule("IQ3_XXS", Q3_K, no_importance),
        _rule("Q3_K_M", Q5_K, first_sixteenth),
        _rule("Q3_K_M", Q4_K, not_falcon),
        _rule("Q3_K_M", Q4_K, more_bits),
        _rule("IQ3_M", Q4_K, first_eighth),
        _rule("IQ3_M", Q4_K, eight_experts, more_bits),
        _rule("Q3_K_L", Q4_K, falcon),
        _rule("Q3_K_L", Q5_K),
        _rule("Q4_K_M", Q6_K, falcon, first_sixteenth),
        _rule("Q4_K_M", Q5_K, falcon, more_bits),
        _rule("Q4_K_M", Q6_K, not_falcon, more_bits),
        _rule("Q5_K_M", Q6_K, more_bits),
        _rule("Q4_K_S", Q5_K, not_falcon, first_eighth),
        _rule("IQ4_NL IQ4_XS", Q5_K, no_importance, first_eighth),
        _rule("Q4_0", Q4_1, importance, first_eighth),
        _rule("Q5_0", Q5_1, importance, first_eighth),
    ),
    "ffn_gate": (*_MXFP4_MOE_FFN, _rule("IQ3_XS", IQ3_XXS, middle)),
    "ffn_up": (*_MXFP4_MOE_FFN, _rule("IQ3_XS", IQ3_XXS, middle)),
    "other": _MXFP4_MOE,
}
# In 70B models eight heads share attn_v, so a finer type costs little: what the rules gave for it,
# and what it becomes in all but the lowest recipes.
FINER_ATTN_V_OF_70B: Final = {Q3_K: Q5_K, Q4_K: Q5_K}
LOWEST_RECIPES: Final = frozenset(_LOW.split())
# GLM 5 keeps these at Q8_0 in all quantized recipes.
GLM_Q8_0: Final = re.compile(r"attn_q_a|attn_q_b|nextn\.eh_proj")
# For rows that do not fill blocks. F16 if they do not fill those of the fallback either.
FALLBACKS: Final = {
    **dict.fromkeys((IQ1_S, IQ1_M, IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S, IQ4_XS), IQ4_NL),
    **dict.fromkeys((Q2_0, Q2_K, Q3_K, TQ1_0, TQ2_0), Q4_0),
    Q4_K: Q5_0,
    Q5_K: Q5_1,
    Q6_K: Q8_0,
}
# Without importance these give garbage in matrices other than the embedding table and the output.
NEED_IMPORTANCE: Final = frozenset((IQ3_XXS, IQ2_XXS, IQ2_XS, IQ2_S, IQ1_M, IQ1_S))
# Matrices that are not quantized: norms, routers, small tables, convolutions, positions.
NOT_QUANTIZED: Final = re.compile(
    r"_norm\.weight|ffn_gate_inp\.weight|ffn_gate_tid2eid\.weight|altup|laurel"
    r"|per_layer_model_proj|^position_embd\.weight$|^token_types\.weight$|ssm_conv1d"
    r"|shortconv\.conv\.weight|indexer\.[kq]_proj\.weight"
    r"|time_mix_(first|w[012]|v[012]|a[012]|g[12]|decay_w[12]|lerp_fused)\.weight"
    r"|attn_rel_b\.weight|\.position_embd|sam\.(pos_embd|neck\.|net_)|\.rel_pos|\.patch_embd"
    r"|\.patch_merger|a\.rvq\.codebook|mm\.a\.code_embd"
)
GLM_NOT_QUANTIZED: Final = re.compile(
    r"hc_|indexer\.attn_q_b|indexer\.attn_k|indexer\.proj|indexer_compressor_(gate|ape)"
    r"|ssm_[fg]_[ab]\.weight|ssm_beta\.weight|attn_kv_a_mqa\.weight|attn_[kv]_b\.weight"
)
