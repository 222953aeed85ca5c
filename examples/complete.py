#!/usr/bin/env -S .venv/bin/python
"""Let llama.cpp continue a text with a GGUF file: complete.py MODEL.gguf PROMPT [TOKENS].

What `llama-completion` does, by way of the `llama-cpp` extra, whose wheel has no programs.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Print a prompt and its continuation, drawn with a fixed seed."""
    from xllamacpp import CommonParams, Server  # pyright: ignore[reportAttributeAccessIssue]

    model, prompt, *rest = sys.argv[1:]
    params = CommonParams()
    params.model.path = model
    params.n_ctx, params.n_parallel, params.warmup = 256, 1, False
    params.verbosity = 0
    params.cpuparams.n_threads = 2
    tokens = int(rest[0]) if rest else 32
    asked = {"prompt": prompt, "n_predict": tokens, "temperature": 0.6, "seed": 1}
    try:
        answer = Server(params).handle_completions(asked)
    except RuntimeError:
        sys.exit(f"error: {model}: llama.cpp does not load it")
    print(prompt + answer["choices"][0]["text"], flush=True)
    os._exit(0)  # the server's threads are of no further use


if __name__ == "__main__":
    main()
