"""Turn text into a model's tokens without running anything of it: the same as llama.cpp's.

One module for each kind of vocabulary; `open_tokenizer` finds which a model has.
"""

from weightcast.evaluation.tokenizers.find import Tokenizer, open_tokenizer

__all__ = ["Tokenizer", "open_tokenizer"]
