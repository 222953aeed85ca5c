"""Grok-1's hyperparameters for transformers, read from the config.json beside this file.

weightcast writes this file into its safetensors directories; it needs transformers alone.
"""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig


class Grok1Config(PretrainedConfig):
    """Hold the hyperparameters under the keys that vLLM, SGLang and llama.cpp read as well.

    - `hidden_act` in config.json names those runtimes' kernel; here it is always GELU's tanh form.
    - `attn_output_multiplier` is what scales q.k before the soft cap; where it is absent it is
      head_dim ** -0.5, as in the release.
    Raises ValueError for settings that the model here would not compute.
    """

    # What config.json says: a type that every runtime's transformers knows.
    model_type = "mixtral"
    keys_to_ignore_at_inference = ["past_key_values"]

    def __init__(
        self,
        vocab_size: int = 131072,
        hidden_size: int = 6144,
        intermediate_size: int = 32768,
        num_hidden_layers: int = 64,
        num_attention_heads: int = 48,
        num_key_value_heads: int = 8,
        head_dim: int | None = None,
        num_local_experts: int = 8,
        num_experts_per_tok: int = 2,
        max_position_embeddings: int = 8192,
        rms_norm_eps: float = 1e-5,
        rope_theta: float = 10000.0,
        embedding_multiplier_scale: float = 78.38367176906169,
        output_multiplier_scale: float = 0.5773502691896257,
        attn_output_multiplier: float | None = None,
        attn_logit_softcapping: float = 30.0,
        router_logit_softcapping: float = 0.0,
        moe_router_renormalize: bool = False,
        initializer_range: float = 0.02,
        use_cache: bool = True,
        tie_word_embeddings: bool = True,
        **kwargs: Any,
    ) -> None:
        if router_logit_softcapping or moe_router_renormalize:
            raise ValueError(
                "Grok-1's router has no soft cap and does not renormalize: "
                "router_logit_softcapping must be 0 and moe_router_renormalize false"
            )
        if kwargs.get("rope_scaling"):
            raise ValueError("Grok-1's rotary positions are not scaled: no rope_scaling")
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads
        self.head_dim = head_dim or hidden_size // num_attention_heads
        self.num_local_experts = num_local_experts
        self.num_experts_per_tok = num_experts_per_tok
        self.max_position_embeddings = max_position_embeddings
        self.rms_norm_eps = rms_norm_eps
        self.rope_theta = rope_theta
        self.embedding_multiplier_scale = embedding_multiplier_scale
        self.output_multiplier_scale = output_multiplier_scale
        self.attn_logit_softcapping = attn_logit_softcapping
        self.router_logit_softcapping = router_logit_softcapping
        self.moe_router_renormalize = moe_router_renormalize
        self.initializer_range = initializer_range
        self.use_cache = use_cache
        if attn_output_multiplier is not None:  # vLLM gives the key another meaning: never add it
            self.attn_output_multiplier = attn_output_multiplier
        kwargs["tie_word_embeddings"] = tie_word_embeddings
        super().__init__(**kwargs)
        # What a loaded model says: for Mixtral's type transformers would rename and fuse the
        # experts while it loads. `to_dict` writes the class's type again.
        self.model_type = "grok-1"  # type: ignore[misc]

    @property
    def attention_scale(self) -> float:
        """What q.k is multiplied with before the soft cap."""
        told: float | None = getattr(self, "attn_output_multiplier", None)
        return float(self.head_dim**-0.5 if told is None else told)
