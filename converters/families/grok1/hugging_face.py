"""Grok-1's config.json and the other small files of a Hugging Face directory.

The config loads unmodified in vLLM (0.14 to 0.24), SGLang and llama.cpp's converter:
- `model_type` mixtral: transformers has no Grok, and these runtimes look at `architectures`. Every
  value whose Mixtral default differs is written out.
- `moe_intermediate_size` makes vLLM expect the names that SGLang and llama.cpp know.
- `router_logit_softcapping` 0.0: the reference has no cap; vLLM's default is 30.
- `moe_router_renormalize` false: the reference does not renormalize the chosen experts' weights.
- No `attn_output_multiplier` where it is key_size ** -0.5, as in the release: all of them compute
  that themselves, and vLLM would scale the attention output by it too.
- `load_presharded_moe` false: SGLang's default under tensor parallelism expects split files.
- `auto_map` leads transformers, where it may run a directory's code, to the two files in
  `transformers/`, which are copied beside the weights. Without that permission, and in the
  runtimes above, it changes nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from weightcast.converters.families.grok1.spec import Grok1Spec, grok1_spec
from weightcast.converters.graph import Spec, TensorGraph

if TYPE_CHECKING:
    from weightcast.formats.tokenizer import Vocabulary

_TORCH_DTYPES: Final = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# What transformers runs with trust_remote_code=True: not imported here, written into directories.
_FOLDER: Final = Path(__file__).with_name("transformers")
CODE: Final = (_FOLDER / "configuration_grok1.py", _FOLDER / "modeling_grok1.py")
_AUTO_MAP: Final = {
    "AutoConfig": "configuration_grok1.Grok1Config",
    "AutoModel": "modeling_grok1.Grok1Model",
    "AutoModelForCausalLM": "modeling_grok1.Grok1ForCausalLM",
}


# What configs of other models have, and Grok-1 has one way only: activation, router, positions.
CONFIG_FIXED: Final[Mapping[str, tuple[object, ...]]] = {
    "hidden_act": ("gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast"),
    "moe_router_renormalize": (False,),
    "router_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
    "rope_scaling.rope_type": ("default",),
    "rope_scaling.type": ("default",),
    "rope_scaling.factor": (1,),
    "rope_parameters.rope_type": ("default",),
    "partial_rotary_factor": (1,),
    "rope_parameters.partial_rotary_factor": (1,),
    "sliding_window": (0,),
    "attention_bias": (False,),
    "tie_word_embeddings": (True,),
}


def has_standard_attention_scale(spec: Grok1Spec) -> bool:
    """Tell whether attention is scaled as every runtime assumes it is."""
    return math.isclose(spec.attn_output_multiplier, spec.key_size**-0.5, rel_tol=1e-6)


def config(
    spec: Grok1Spec,
    type_name: str,
    vocabulary: Vocabulary | None,
    quantization: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Make config.json; `type_name` is that of the plain floats beside quantized weights."""
    special = {"bos": 1, "eos": 2, "pad": 0} if vocabulary is None else vocabulary.special_ids
    values: dict[str, Any] = {
        "architectures": ["Grok1ForCausalLM"],
        "auto_map": _AUTO_MAP,
        "model_type": "mixtral",
        "hidden_size": spec.emb_size,
        "intermediate_size": spec.ffn_size,
        "moe_intermediate_size": spec.ffn_size,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": spec.num_q_heads,
        "num_key_value_heads": spec.num_kv_heads,
        "head_dim": spec.key_size,
        "num_local_experts": spec.num_experts,
        "num_experts": spec.num_experts,
        "num_experts_per_tok": spec.num_selected_experts,
        "vocab_size": spec.vocab_size,
        "max_position_embeddings": spec.context_length,
        "rms_norm_eps": spec.rms_norm_eps,
        "rope_theta": spec.rope_base,
        "hidden_act": "gelu",
        "embedding_multiplier_scale": spec.embedding_multiplier_scale,
        "output_multiplier_scale": spec.output_multiplier_scale,
        "attn_logit_softcapping": spec.attn_logit_cap,
        "router_logit_softcapping": 0.0,
        "moe_router_renormalize": False,
        "load_presharded_moe": False,
        "tie_word_embeddings": True,
        "torch_dtype": _TORCH_DTYPES[type_name],
    }
    if not has_standard_attention_scale(spec):
        values["attn_output_multiplier"] = spec.attn_output_multiplier
    for name in ("bos", "eos", "pad", "unk"):
        if name in special:
            values[f"{name}_token_id"] = special[name]
    if quantization is not None:
        values["quantization_config"] = dict(quantization)
    return values


def companion_files(
    spec: Spec,
    type_name: str,
    vocabulary: Vocabulary | None,
    quantization: Mapping[str, Any] | None = None,
) -> dict[str, bytes]:
    """Make the small files of a directory: configs, code for transformers and the tokenizer's."""
    model = grok1_spec(spec)
    values = config(model, type_name, vocabulary, quantization)
    special = {key: values[key] for key in values if key.endswith("_token_id")}
    special.pop("unk_token_id", None)
    files = {
        "config.json": _json(values),
        "generation_config.json": _json({"_from_model_config": True, **special}),
        **{file.name: file.read_bytes() for file in CODE},
    }
    if vocabulary is not None and vocabulary.model_file is not None:
        from weightcast.formats.tokenizer import tokenizer_json

        files["tokenizer.model"] = vocabulary.model_file.read_bytes()
        files["tokenizer.json"] = tokenizer_json(vocabulary)
        files["tokenizer_config.json"] = _json(_tokenizer_config(model, vocabulary))
    return files


def _tokenizer_config(spec: Grok1Spec, vocabulary: Vocabulary) -> dict[str, Any]:
    # No added_tokens_decoder: llama.cpp's converter would change the pieces that it lists.
    tokens = {f"{name}_token": vocabulary.tokens[n] for name, n in vocabulary.special_ids.items()}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": spec.context_length,
        # Before 5, transformers adds token_type_ids by default, which the model refuses.
        "model_input_names": ["input_ids", "attention_mask"],
        **tokens,
    }


def _json(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=2) + "\n").encode()


def runtime_notes(graph: TensorGraph) -> Iterator[str]:
    """Say which runtimes compute something else than this model."""
    spec = grok1_spec(graph.spec)
    if not has_standard_attention_scale(spec):
        yield (
            "vLLM and SGLang will be wrong: they scale attention by key_size ** -0.5, this model "
            f"by {spec.attn_output_multiplier}"
        )
