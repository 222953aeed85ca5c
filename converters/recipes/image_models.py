"""The rules for diffusion models: which tensors stay as they are, which get finer types.

llama.cpp knows none of these models. ComfyUI-GGUF patches llama-quantize for them, and its rules
are those of most files that are shared: tools/lcpp.patch and tools/convert.py of
https://github.com/city96/ComfyUI-GGUF (December 2025). Where it has none they are
stable-diffusion.cpp's, which go by names alone: ModelLoader::tensor_should_be_converted in
src/model_loader.cpp of https://github.com/leejet/stable-diffusion.cpp (August 2026).

What stays keeps its source's type (convert.py writes F32, F16 or BF16); of what is quantized, as
everywhere, names end in "weight". Both tools quantize matrices of two axes only.
"""

from __future__ import annotations

import re
from typing import Final

from weightcast.converters.recipes.llama_quantize import Rule, first_four, first_two, rule
from weightcast.quant.types import Q2_K, Q3_K, Q4_1, Q4_K, Q5_1, Q5_K, Q6_K


def _kept(*fragments: str) -> re.Pattern[str]:
    """Match names with any of the fragments."""
    return re.compile("|".join(fragments))


_FLUX: Final = _kept(r"(txt|img|time|vector|guidance)_in\.", r"final_layer\.")
# The second version has an embedding table, which stable-diffusion.cpp keeps.
_HUNYUAN: Final = _kept(_FLUX.pattern, r"embedding")
_STABLE_DIFFUSION: Final = _kept(
    r"(class|time|add)_embedding\.",
    r"time_embed\.",
    r"label_emb\.",
    r"conv_(in|out)\.",
    r"^input_blocks\.0\.0\.weight$",
    r"^out\.2\.weight$",
)
# stable-diffusion.cpp's: the parts for FLUX, for MMDiT, for U-Nets, and embeddings.
_BY_NAME: Final = _kept(
    _FLUX.pattern,
    r"[xty]_embedder\.",
    r"pos_embed",
    r"context_embedder\.",
    r"time_embed\.",
    r"label_emb\.",
    r"embedding",
)
# Names of tensors that stay, by general.architecture.
IMAGE_MODELS: Final = {
    "aura": _kept(
        r"t_embedder\.",
        r"init_x_linear\.",
        r"^modF\.1\.weight$",
        r"^(cond_seq|final)_linear\.weight$",
        r"^positional_encoding$",
        r"^register_tokens$",
    ),
    "cosmos": _kept(r"[ptx]_embedder\.", r"t_embedding_norm\.", r"pos_embedder", r"final_layer\."),
    "flux": _FLUX,
    "hidream": _kept(
        r"[ptx]_embedder\.",
        r"final_layer\.",
        r"\.ff_i\.gate\.weight",
        r"caption_projection\.",
        r"img_emb\.emb_pos",
    ),
    "hyvid": _HUNYUAN,
    "hunyuan_video": _HUNYUAN,
    "ltxv": _kept(
        r"adaln_single\.",
        r"caption_projection\.",
        r"patchify_proj\.",
        r"proj_out\.",
        r"scale_shift_table",
    ),
    "lumina2": _kept(
        r"[tx]_embedder\.", r"final_layer\.", r"cap_embedder\.", r"(context|noise)_refiner\."
    ),
    "sd1": _STABLE_DIFFUSION,
    "sdxl": _STABLE_DIFFUSION,
    "sd3": _kept(
        r"final_layer\.",
        r"time_text_embed\.",
        r"context_embedder\.",
        r"[txy]_embedder\.",
        r"^proj_out\.weight$",
        r"^pos_embed$",
    ),
    "wan": _kept(
        r"modulation\.",
        r"\.modulation",
        r"(patch|text|time)_embedding\.",
        r"time_projection\.",
        r"img_emb\.",
        r"head\.",
    ),
    # By stable-diffusion.cpp's list: a model that it runs and the patch does not know; its own
    # files, which name no architecture; and names under which others write whatever model.
    "": _BY_NAME,
    "cow": _BY_NAME,
    "pig": _BY_NAME,
    "qwen_image": _BY_NAME,
}

# Name fragments and their categories; the first that is found counts.
IMAGE_CATEGORIES: Final = (
    (
        re.compile(
            r"attn_v\.weight|\.to_v\.weight|\.v\.weight|\.attn\.w[12]v\.weight"
            r"|_attn\.v_proj\.weight"
        ),
        "v",
    ),
    (re.compile(r"(attn[_.]|attention\.)qkv\.weight"), "qkv"),
    (
        re.compile(
            r"ffn_down|experts\..*\.w2\.weight|\.ffn\.2\.weight|\.ff\.net\.2\.weight"
            r"|\.mlp\.layer2\.weight|\.adaln_modulation_mlp\.2\.weight|\.feed_forward\.w2\.weight"
        ),
        "down",
    ),
)
IMAGE_RULES: Final[dict[str, tuple[Rule, ...]]] = {
    "v": (
        rule("Q2_K", Q3_K),
        rule("Q3_K_M", Q5_K, first_two),
        rule("Q3_K_M", Q4_K),
        rule("Q3_K_L", Q5_K),
        rule("Q4_K_M Q5_K_M", Q6_K),
        rule("Q4_K_S", Q5_K, first_four),
    ),
    "qkv": (
        rule("Q3_K_M Q3_K_L", Q4_K),
        rule("Q4_K_M", Q5_K),
        rule("Q5_K_M", Q6_K),
    ),
    "down": (
        rule("Q3_K_M", Q4_K),
        rule("Q3_K_L Q4_K_S", Q5_K),
        rule("Q4_K_M Q5_K_M", Q6_K),
        rule("Q4_0", Q4_1),
        rule("Q5_0", Q5_1),
    ),
}
# Rows that do not fill blocks of these are F16, not the type that llama.cpp puts in their place.
IMAGE_FALLBACKS: Final = frozenset((Q2_K, Q3_K, Q4_K, Q5_K, Q6_K))
