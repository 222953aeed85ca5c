"""Grok-1 for transformers: what the released model.py (xai-org/grok-1) computes.

weightcast writes this file into its safetensors directories; it needs torch and transformers alone.
Matrices and what they are multiplied with are in the dtype that the model is loaded in. What lies
between them is float32: the sum that runs through the layers, norms, router, soft cap, softmax.
Every matrix but the router's is an nn.Linear, so that quantizers find it.
"""

import inspect
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from .configuration_grok1 import Grok1Config

# Attention scores are [batch, heads, queries, keys] in float32: so many queries at a time, or a
# prompt of 8192 tokens would need 13 GB for each copy of them.
QUERIES_AT_ONCE = 512

# transformers renamed arguments: `input_embeds` of create_causal_mask in 5, and in 5.24
# `past_key_values`, in results too, whose old name 5.40 will refuse. generate() goes by the names
# of its own version; callers may use either.
_MASK_ARGUMENTS = inspect.signature(create_causal_mask).parameters
_EMBEDS = "inputs_embeds" if "inputs_embeds" in _MASK_ARGUMENTS else "input_embeds"
_RESULTS = {field.name for field in fields(CausalLMOutputWithPast)}
_CACHE = "cache" if "cache" in _RESULTS else "past_key_values"
# Until 5.2 or so, a static cache must be told where new keys go: without it, always to its start.
_CACHE_IS_TOLD = "cache_kwargs" in inspect.signature(Cache.update).parameters


class Grok1RMSNorm(nn.Module):
    """Divide [..., hidden] by its root mean square and multiply with the scale: float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)
        return x * self.weight.float()


def rotation(config: Grok1Config, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Compute cosines and sines [batch, 1, tokens, head_dim / 2] for positions [batch, tokens]."""
    half = config.head_dim // 2
    exponents = torch.arange(half, dtype=torch.float32, device=positions.device) / half
    angles = positions[:, None, :, None].float() / config.rope_theta**exponents
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn component i of [batch, heads, tokens, head_dim] with component i + head_dim / 2."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)


def capped_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, cap: float
) -> tuple[Tensor, Tensor]:
    """Attend with scores cap * tanh(q.k * scale / cap): values and weights, both by query head.

    q is [batch, heads, queries, head_dim], k and v [batch, kv_heads, keys, head_dim]; query heads
    [j * group, (j + 1) * group) share key/value head j. `mask` [batch, 1, queries, keys] is added.
    """
    batch, heads, queries, size = q.shape
    kv_heads = k.shape[1]
    # The heads of a group are more queries of one key/value head: keys are not repeated.
    scores = q.reshape(batch, kv_heads, -1, size) @ k.transpose(-1, -2)
    scores = scores.view(batch, heads, queries, -1).float() * scale
    if cap > 0:
        scores = cap * torch.tanh(scores / cap)
    if mask is not None:
        scores = scores + mask
    weights = scores.softmax(dim=-1).to(v.dtype)
    values = weights.view(batch, kv_heads, -1, k.shape[2]) @ v
    return values.view(batch, heads, queries, size), weights


class Grok1Attention(nn.Module):
    def __init__(self, config: Grok1Config, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.scale = config.attention_scale
        self.cap = config.attn_logit_softcapping
        heads = config.num_attention_heads * config.head_dim
        kv_heads = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, heads, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, kv_heads, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, kv_heads, bias=False)
        self.o_proj = nn.Linear(heads, config.hidden_size, bias=False)

    def forward(
        self,
        x: Tensor,
        cos_sin: tuple[Tensor, Tensor],
        new: Tensor,
        mask: Tensor | None,
        cache: Cache | None,
        keep_weights: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Mix [batch, tokens, hidden], the tokens with numbers `new` [tokens] in the cache.

        The second result is the weights, if they are to be kept.
        """
        batch, tokens, _ = x.shape

        def heads(projected: Tensor) -> Tensor:
            return projected.view(batch, tokens, -1, self.head_dim).transpose(1, 2)

        q = rotate(heads(self.q_proj(x)), *cos_sin)
        k = rotate(heads(self.k_proj(x)), *cos_sin)
        v = heads(self.v_proj(x))
        if cache is not None:
            told = ({"cache_position": new},) if _CACHE_IS_TOLD else ()
            k, v = cache.update(k, v, self.layer_idx, *told)
        values, weights = [], []
        for start in range(0, tokens, QUERIES_AT_ONCE):
            part = slice(start, start + QUERIES_AT_ONCE)
            seen = None if mask is None else mask[:, :, part]
            mixed, by = capped_attention(q[:, :, part], k, v, seen, self.scale, self.cap)
            values.append(mixed)
            if keep_weights:
                weights.append(by)
        mixed = torch.cat(values, dim=2).transpose(1, 2).reshape(batch, tokens, -1)
        return self.o_proj(mixed), torch.cat(weights, dim=2) if keep_weights else None


class Grok1Router(nn.Module):
    """Choose experts in float32. Not an nn.Linear: it is never quantized."""

    def __init__(self, config: Grok1Config) -> None:
        super().__init__()
        self.chosen = config.num_experts_per_tok
        self.weight = nn.Parameter(torch.empty(config.num_local_experts, config.hidden_size))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Choose for [rows, hidden]: probabilities (among all experts), numbers [rows, chosen]."""
        p = functional.linear(x.float(), self.weight.float()).softmax(dim=-1)
        return p.topk(self.chosen, dim=-1)


class Grok1Expert(nn.Module):
    def __init__(self, config: Grok1Config) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)  # gate
        self.w3 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)  # up
        self.w2 = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)  # down

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(functional.gelu(self.w1(x), approximate="tanh") * self.w3(x))


class Grok1SparseMoe(nn.Module):
    def __init__(self, config: Grok1Config) -> None:
        super().__init__()
        self.gate = Grok1Router(config)
        self.experts = nn.ModuleList(Grok1Expert(config) for _ in range(config.num_local_experts))

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Sum the chosen experts of float32 [batch, tokens, hidden], weighted."""
        rows = x.reshape(-1, x.shape[-1])
        p, chosen = self.gate(rows)
        y = torch.zeros_like(rows)
        rows = rows.to(dtype)
        for number, expert in enumerate(self.experts):
            at, rank = torch.where(chosen == number)
            if at.numel():
                y.index_add_(0, at, expert(rows[at]).float() * p[at, rank, None])
        return y.view_as(x)


class Grok1DecoderLayer(GradientCheckpointingLayer):
    def __init__(self, config: Grok1Config, layer_idx: int) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.rms_norm_eps
        self.pre_attn_norm = Grok1RMSNorm(size, eps)
        self.self_attn = Grok1Attention(config, layer_idx)
        self.post_attn_norm = Grok1RMSNorm(size, eps)
        self.pre_moe_norm = Grok1RMSNorm(size, eps)
        self.block_sparse_moe = Grok1SparseMoe(config)
        self.post_moe_norm = Grok1RMSNorm(size, eps)

    def forward(
        self,
        h: Tensor,
        cos_sin: tuple[Tensor, Tensor],
        dtype: torch.dtype,
        new: Tensor,
        mask: Tensor | None,
        cache: Cache | None,
        keep_weights: bool,
    ) -> tuple[Tensor, Tensor | None]:
        x = self.pre_attn_norm(h).to(dtype)
        a, weights = self.self_attn(x, cos_sin, new, mask, cache, keep_weights)
        h = h + self.post_attn_norm(a)
        y = self.block_sparse_moe(self.pre_moe_norm(h), dtype)
        return h + self.post_moe_norm(y), weights


class Grok1PreTrainedModel(PreTrainedModel):
    config: Grok1Config
    config_class = Grok1Config
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Grok1DecoderLayer"]
    _skip_keys_device_placement = ["cache", "past_key_values"]
    # Attention here is "eager" alone: torch's own attention has no soft cap.
    _supports_sdpa = False
    # Before 5, a name stands for whole parts of names only.
    _keep_in_fp32_modules_strict = [
        "gate",
        "norm",
        "pre_attn_norm",
        "post_attn_norm",
        "pre_moe_norm",
        "post_moe_norm",
    ]

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Grok1Router):
            nn.init.normal_(module.weight, std=self.config.initializer_range)


class Grok1Model(Grok1PreTrainedModel):
    """The layers between token ids and the final norm."""

    def __init__(self, config: Grok1Config) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        layers = range(config.num_hidden_layers)
        self.layers = nn.ModuleList(Grok1DecoderLayer(config, n) for n in layers)
        self.norm = Grok1RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        cache: Cache | None = None,
        cache_position: Tensor | None = None,
    ) -> BaseModelOutputWithPast:
        """Run [batch, tokens]; `inputs_embeds` are rows of the table, not yet multiplied.

        `cache` and `past_key_values` are names for the same thing. `cache_position` numbers the
        tokens among those in the cache, as earlier versions pass it; else they follow its last.
        """
        config = self.config
        cache = _given_cache(cache, past_key_values)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        use_cache = config.use_cache if use_cache is None else use_cache
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            # Layers run twice, and would add their keys twice.
            if cache is not None:
                raise ValueError("give no cache with gradient checkpointing")
            use_cache = False
        if use_cache and cache is None:
            cache = DynamicCache(config=config)
        new = cache_position
        if new is None:
            seen = 0 if cache is None else cache.get_seq_length()
            new = seen + torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device)
        position_ids = new[None] if position_ids is None else position_ids
        mask = _causal_mask(config, inputs_embeds, attention_mask, cache, position_ids, new)
        cos_sin = rotation(config, position_ids)
        if output_attentions is None:
            output_attentions = config.output_attentions
        if output_hidden_states is None:
            output_hidden_states = config.output_hidden_states

        h = inputs_embeds.float() * config.embedding_multiplier_scale
        states, attentions = [h], []
        for layer in self.layers:
            h, weights = layer(
                h, cos_sin, inputs_embeds.dtype, new, mask, cache, bool(output_attentions)
            )
            states = [*states, h] if output_hidden_states else states
            attentions.append(weights)
        h = self.norm(h).to(inputs_embeds.dtype)
        return BaseModelOutputWithPast(
            last_hidden_state=h,
            # As everywhere in transformers, the last one is that after the final norm.
            hidden_states=(*states[:-1], h) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
            **{_CACHE: cache if use_cache else None},
        )


def _given_cache(cache: Cache | None, past_key_values: Cache | None) -> Cache | None:
    """Take the cache by whichever of its names it was given."""
    if cache is not None and past_key_values is not None:
        raise ValueError("give either cache or past_key_values")
    return past_key_values if cache is None else cache


def _causal_mask(
    config: Grok1Config,
    embeds: Tensor,
    attention_mask: Tensor | None,
    cache: Cache | None,
    positions: Tensor,
    new: Tensor,
) -> Tensor | None:
    """Make the mask [batch, 1, tokens, keys] that is added to scores; padding is masked too."""
    given: dict[str, Any] = {_EMBEDS: embeds, _CACHE: cache, "position_ids": positions}
    if "cache_position" in _MASK_ARGUMENTS:
        given["cache_position"] = new
    mask: Any = create_causal_mask(config=config, attention_mask=attention_mask, **given)
    return mask  # of "eager" attention: a tensor or None


class Grok1ForCausalLM(Grok1PreTrainedModel, GenerationMixin):
    # The head is the embedding table, whether or not the files have it a second time.
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    # Trainer passes num_items_in_batch.
    accepts_loss_kwargs = True

    def __init__(self, config: Grok1Config) -> None:
        super().__init__(config)
        self.model = Grok1Model(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        cache: Cache | None = None,
        cache_position: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> CausalLMOutputWithPast:
        """Compute logits [batch, tokens, vocab], for the last `logits_to_keep` tokens if not 0.

        Other arguments are refused: a runtime that passes them wants something that is not here.
        """
        result = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            cache=_given_cache(cache, past_key_values),
            cache_position=cache_position,
            return_dict=True,
        )
        wanted = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(result.last_hidden_state[:, wanted])
        logits = logits * self.config.output_multiplier_scale
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits, labels, self.config.vocab_size, num_items_in_batch=num_items_in_batch
            )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=result.hidden_states,
            attentions=result.attentions,
            **{_CACHE: result.get(_CACHE)},
        )


__all__ = ["Grok1ForCausalLM", "Grok1Model", "Grok1PreTrainedModel"]
