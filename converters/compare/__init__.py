"""Compare two checkpoints tensor by tensor."""

from weightcast.converters.compare.comparison import Comparison, compare

__all__ = ["Comparison", "compare"]
