"""Open whatever holds a model and describe it as a graph."""

from weightcast.converters.sources.open import open_graph

__all__ = ["open_graph"]
