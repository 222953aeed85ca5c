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
    """The facts that the rules ask for; `groups` is query heads per key-value head (0: unknown).

    `n_layer` counts all layers, the `n_nextn` last of which predict more tokens (n_layer_all and
    n_layer_nextn in llama.cpp).
    """

    architecture: str
    n_layer: int
    n_expert: int = 0
    groups: int = 1
    has_importance: bool = False
    n_nextn: int = 0

    @property
    def is_70b(self) -> bool:
        """True if llama.cpp takes the model for a 70B one (LLM_TYPE_70B)."""
        known = ARCHITECTURES.get(self.architecture, Architecture())
        if known.has_shared_heads_at_70b and self.groups == 1:
            return False
        return self.n_layer - self.n_nextn == known.n_layer_of_70b


@dataclass(frozen=True, slots=True)
class Architecture:
    """What llama.cpp makes of an architecture's metadata, as far as the rules ask for it.

    A model of `n_layer_of_70b` layers is a 70B one (if heads `has_shared_heads_at_70b`, only with
    fewer key-value heads). Layers are run as often as `loops_key` says, and each run counts;
    `n_extra` counts those behind the layers that the file has. Either leaves out of the count the
    layers that predict more tokens.
    """

    n_layer_of_70b: int | None = None
    has_shared_heads_at_70b: bool = False
    loops_key: str = ""
    n_extra: int = 0

    def n_layer(self, block_count: int, n_nextn: int, loops: int) -> int:
        """Count the layers (n_layer_all) by what the metadata say."""
        if loops > 1 or self.n_extra:
            return (block_count - n_nextn) * max(loops, 1) + self.n_extra
        return block_count


# Those that are not as their metadata say, or have a 70B model: load_arch_hparams in
# src/models/*.cpp. No other changes n_layer_all, n_expert, or the heads of the first layer, in a
# way that a rule would see.
ARCHITECTURES: Final = {
    "deci": Architecture(80),
    "graniteswitch": Architecture(n_extra=1),  # a router of adapters, granite-switch.cpp
    "jais2": Architecture(68),
    "llama": Architecture(80, has_shared_heads_at_70b=True),
    "llama-embed": Architecture(80, has_shared_heads_at_70b=True),
    "nanbeige": Architecture(loops_key="num_loops"),
    "olmo": Architecture(80),
    "qwen2": Architecture(80),
}


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# LLM_ARCH_NAMES in src/llama-arch.cpp: what llama.cpp's rules are meant for.
KNOWN_ARCHITECTURES: Final = _words(
    """
    afmoe apertus arcee arctic arwkv7 baichuan bailingmoe bailingmoe2 bailingmoe3 bert
    bitnet bloom chameleon chatglm clip codeshell cogvlm cohere2 cohere2moe command-r dbrx
    deci deepseek deepseek2 deepseek2-ocr deepseek32 deepseek4 dflash dots1 dots3note dream
    eagle3 ernie4_5 ernie4_5-moe eurobert exaone exaone-moe exaone4 falcon falcon-h1 gemma
    gemma-embedding gemma2 gemma3 gemma3n gemma4 gemma4-assistant glm-dsa glm4 glm4moe
    glm5-next gpt-oss gpt2 gptj gptneox granite granite_swa granitehybrid granitemoe
    graniteswitch grok grovemoe hrm_text hunyuan-dense hunyuan-moe hunyuan_vl hy_v3 hy_v4
    internlm2 jais jais2 jamba jina-bert-v2 jina-bert-v3 kimi-k3 kimi-linear laguna lfm2
    lfm2moe llada llada-moe llama llama-embed llama4 maincoder mamba mamba2 maple mellum
    mimo2 minicpm minicpm3 minimax-01 minimax-m2 minimax-m3 mistral3 mistral4 modern-bert
    mpt muse-glimmer nanbeige nemotron nemotron_h nemotron_h_moe neo-bert nomic-bert
    nomic-bert-moe olmo olmo2 olmoe openelm orion paddleocr pangu-embedded phi2 phi3 phimoe
    plamo plamo2 plamo3 plm pockettts qwen qwen2 qwen2moe qwen2vl qwen3 qwen35 qwen35moe
    qwen3moe qwen3next qwen3tts qwen3vl qwen3vlmoe qwen4exp refact rnd1 rwkv6 rwkv6qwen2
    rwkv7 seed_oss smallthinker smollm3 spark2_5 stablelm starcoder starcoder2 step35 t5
    t5encoder talkie wavtokenizer-dec xverse
    """
)


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


def rule(recipes: str, quant_type: QuantType, *conditions: Condition) -> Rule:
    return Rule(_words(recipes), quant_type, conditions)


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
_MXFP4_MOE = (rule("MXFP4_MOE", MXFP4, stacked_experts), rule("MXFP4_MOE", Q8_0))
_MXFP4_MOE_FFN = (rule("MXFP4_MOE", MXFP4, stacked), rule("MXFP4_MOE", Q8_0))
# Where the output shares the embedding table, the table's category is "output".
RULES: Final[dict[str, tuple[Rule, ...]]] = {
    "output": (
        rule("MXFP4_MOE", Q8_0),
        rule("", Q8_0, falcon),
        rule("", Q8_0, does_not_fit),
        rule(f"{_LOW} IQ3_XXS", Q5_K),
        rule("Q8_0", Q8_0),
        rule("", Q6_K),
    ),
    "token_embd": (
        *_MXFP4_MOE,
        rule("IQ1_S IQ1_M IQ2_XXS IQ2_XS", Q2_K),
        rule("IQ2_S IQ2_M IQ3_XXS", IQ3_S),
        rule("TQ1_0 TQ2_0 Q2_0", Q4_K),
    ),
    "attn_v": (
        *_MXFP4_MOE,
        rule(_LOW, Q4_K, shared_heads_or_experts),
        rule("IQ2_S IQ2_M", IQ3_S),
        rule(_LOW, Q2_K),
        rule("", Q8_0, eight_experts),
        rule("Q2_K Q2_K_S IQ3_XXS IQ3_XS IQ3_S", Q4_K, shared_heads),
        rule("Q2_K", Q3_K),
        rule("IQ3_XXS", IQ3_S, no_importance),
        rule("IQ3_M", Q4_K),
        rule("Q3_K_M", Q5_K, first_two),
        rule("Q3_K_M", Q4_K),
        rule("Q3_K_L", Q5_K),
        rule("IQ4_NL IQ4_XS", Q5_K, shared_heads),
        rule("Q4_K_M Q5_K_M", Q6_K, more_bits),
        rule("Q4_K_S", Q5_K, first_four),
    ),
    "attn_k": (
        *_MXFP4_MOE,
        rule(_LOW, Q4_K, eight_experts),
        rule("", Q8_0, eight_experts),
        rule("IQ3_XS", IQ3_XXS),
        rule("IQ3_XXS", IQ2_S),
    ),
    "attn_q": (
        *_MXFP4_MOE,
        rule("IQ3_XS", IQ3_XXS),
        rule("IQ3_XXS", IQ2_S),
    ),
    "attn_output": (
        *_MXFP4_MOE,
        rule(_LOW, Q5_K, eight_experts),
        rule("IQ1_S IQ1_M", IQ2_XXS),
        rule("IQ2_S IQ2_M", IQ3_S),
        rule("Q3_K_L", Q4_K, falcon),
        rule(
            "Q2_K Q3_K_S Q3_K_M Q4_K_S Q4_K_M IQ3_XXS IQ3_XS IQ3_S IQ3_M IQ4_NL IQ4_XS",
            Q5_K,
            not_falcon,
            eight_experts,
        ),
        rule("Q2_K", Q3_K, not_falcon, not_eight_experts),
        rule("IQ3_XXS", IQ3_S, not_falcon, not_eight_experts),
        rule("Q3_K_M IQ3_M", Q4_K, not_falcon, not_eight_experts),
        rule("Q3_K_L", Q5_K, not_falcon, not_eight_experts),
    ),
    "ffn_down": (
        *_MXFP4_MOE_FFN,
        rule("IQ2_S IQ2_M", IQ3_S, first_eighth_by_rank),
        rule("IQ1_S IQ1_M IQ2_XXS IQ2_XS", Q2_K, first_eighth_by_rank),
        rule("Q2_K", Q3_K),
        rule("Q2_K_S", Q4_K, first_eighth),
        rule("IQ3_XXS", Q4_K, no_importance, first_eighth),
        rule("IQ3_XXS", Q3_K, no_importance),
        rule("Q3_K_M", Q5_K, first_sixteenth),
        rule("Q3_K_M", Q4_K, not_falcon),
        rule("Q3_K_M", Q4_K, more_bits),
        rule("IQ3_M", Q4_K, first_eighth),
        rule("IQ3_M", Q4_K, eight_experts, more_bits),
        rule("Q3_K_L", Q4_K, falcon),
        rule("Q3_K_L", Q5_K),
        rule("Q4_K_M", Q6_K, falcon, first_sixteenth),
        rule("Q4_K_M", Q5_K, falcon, more_bits),
        rule("Q4_K_M", Q6_K, not_falcon, more_bits),
        rule("Q5_K_M", Q6_K, more_bits),
        rule("Q4_K_S", Q5_K, not_falcon, first_eighth),
        rule("IQ4_NL IQ4_XS", Q5_K, no_importance, first_eighth),
        rule("Q4_0", Q4_1, importance, first_eighth),
        rule("Q5_0", Q5_1, importance, first_eighth),
    ),
    "ffn_gate": (*_MXFP4_MOE_FFN, rule("IQ3_XS", IQ3_XXS, middle)),
    "ffn_up": (*_MXFP4_MOE_FFN, rule("IQ3_XS", IQ3_XXS, middle)),
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
