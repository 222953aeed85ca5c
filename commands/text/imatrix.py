"""Describe importance matrices: what they hold, and which experts saw too little."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from weightcast.evaluation.divergence import Perplexity
from weightcast.evaluation.statistics import (
    FEWEST_TOKENS,
    ExpertUse,
    TensorStatistics,
    expert_use,
    layer_statistics,
    tensor_statistics,
)
from weightcast.formats.gguf.importance_sums import ImportanceSums
from weightcast.text import count, some


def imatrix_lines(
    sums: ImportanceSums, losses: Perplexity | None, output: Path | None
) -> Iterator[str]:
    """Say what was collected, and which experts need more text."""
    chunks = count(sums.chunks, "chunk")
    tensors = count(len(sums.entries), "tensor")
    to = "" if output is None else f"{output}: "
    yield f"{to}{tensors}, {chunks} of {sums.chunk_size:,} tokens"
    if losses is not None:
        yield f"perplexity {losses.ppl:.4f} ± {losses.ppl_se:.4f}"
    yield from rare_lines(expert_use(sums))


def rare_lines(uses: list[ExpertUse]) -> Iterator[str]:
    """Name the experts that few tokens reached, and how much more text they need."""
    rare = [(use, each) for use in uses for each in use.rare]
    if not rare:
        return
    named = [f"layer {use.layer} expert {each.expert} ({each.tokens:,})" for use, each in rare]
    needs = [each.more_text for _, each in rare if each.more_text is not None]
    more = f"; about {max(needs):,} more tokens of text would do for most" if needs else ""
    yield (
        f"note: fewer than {FEWEST_TOKENS} tokens reached {count(len(rare), 'expert')}: "
        f"{some(named)}{more}"
    )


def statistics_lines(sums: ImportanceSums) -> Iterator[str]:
    """Show the statistics of tensors, layers and experts in tables."""
    tensors = tensor_statistics(sums)
    width = max((len(each.name) for each in tensors), default=0)
    yield ""
    yield (
        f"{'tensor':{width}}  {'sum':>12} {'min':>9} {'max':>10} {'mean':>10} {'deviation':>10} "
        f"{'active':>7} {'columns':>9} {'entropy':>8} {'norm':>7} {'ZD':>7} {'CosSim':>7}"
    )
    for each in tensors:
        yield (
            f"{each.name:{width}}  {each.total:12.4f} {each.least:9.4f} {each.largest:10.4f} "
            f"{each.mean:10.4f} {each.deviation:10.4f} {each.active:7.2%} {each.columns:9} "
            f"{each.entropy:8.4f} {each.entropy_norm:7.2%} {each.zd:7.2%} {each.cosine:7.4f}"
        )
    yield ""
    yield f"{'layer':>5}  {'sum':>12} {'ZD':>7} {'CosSim':>7}"
    for layer in layer_statistics(tensors):
        yield f"{layer.layer:5}  {layer.total:12.4f} {layer.zd:7.2%} {layer.cosine:7.4f}"
    active = {each.name: each for each in tensors}
    for use in expert_use(sums):
        yield ""
        yield f"layer {use.layer}: share of tokens by expert, active columns of {use.tensors[0]}"
        yield "  " + "  ".join(
            f"{number}: {share:.1%} {_share(active, use, number)}"
            for number, share in enumerate(use.shares.tolist())
        )


def _share(active: dict[str, TensorStatistics], use: ExpertUse, expert: int) -> str:
    found = active.get(use.tensors[0])
    share = math.nan if found is None else float(found.active_columns[expert])
    return "-" if math.isnan(share) else f"{share:.0%}"


def imatrix_values(
    sums: ImportanceSums, losses: Perplexity | None, output: Path | None
) -> dict[str, Any]:
    """Describe an importance matrix as JSON values."""
    tensors = tensor_statistics(sums)
    return {
        "output": None if output is None else str(output),
        "datasets": list(sums.datasets),
        "chunks": sums.chunks,
        "chunk_size": sums.chunk_size,
        "perplexity": None if losses is None else asdict(losses),
        "tensors": [
            {
                **{k: v for k, v in asdict(each).items() if k != "active_columns"},
                "active_columns": [
                    None if math.isnan(share) else share for share in each.active_columns.tolist()
                ],
            }
            for each in tensors
        ],
        "layers": [asdict(layer) for layer in layer_statistics(tensors)],
        "experts": [
            {
                "layer": use.layer,
                "tensors": list(use.tensors),
                "tokens": use.tokens.tolist(),
                "shares": use.shares.tolist(),
                "rare": [asdict(each) for each in use.rare],
            }
            for use in expert_use(sums)
        ],
    }
