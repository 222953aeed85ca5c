"""How to run an output, in each runtime that takes it, and which of them do not.

What is said of runtimes was found as benchmarks/runtimes/README.md tells.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from typing import Final

from weightcast.converters.recipes.weight_types import COMPRESSED_TENSORS, PLAIN, WEIGHTCAST
from weightcast.converters.targets.target import Output
from weightcast.quant.groups import GroupType
from weightcast.text import in_code

# How notes begin that say of a runtime why not.
_REFUSALS: Final = ("cannot load this: ", "cannot run this model: ", "will be wrong: ")
# What vLLM's kernels for experts take: groups of 256, or a scale a row.
_VLLM_INT8_GROUPS: Final = (256, 0)


def running(output: Output, *, no_tokenizer: bool) -> Iterator[str]:
    """Give the section's lines, in Markdown."""
    yield "All of the weights must fit into memory, of GPUs or of the machine."
    yield ""
    if output.request.kind == "gguf":
        yield from _llama_cpp(output)
        if no_tokenizer:
            yield "- There is no tokenizer in it: only token ids go in and come out."
        return
    name = in_code(shlex.quote(output.request.path.name))
    yield from _transformers(output)
    yield from _vllm(output, name)
    yield from _sglang(output, name)


def _llama_cpp(output: Output) -> Iterator[str]:
    refusal = _refusal(output, "llama.cpp")
    if refusal is not None:
        yield f"- **llama.cpp** does not run it: {refusal}."
        return
    first = in_code(shlex.quote(output.files[0].path.name))
    more = "; it finds the other files beside the first" if len(output.files) > 1 else ""
    yield f"- **llama.cpp** and what builds on it: `llama-cli -m {first}`{more}."


def _transformers(output: Output) -> Iterator[str]:
    directory = output.request.directory
    assert directory is not None
    name = in_code(json.dumps(output.request.path.name, ensure_ascii=False))
    load = (
        f'`AutoModelForCausalLM.from_pretrained({name}, trust_remote_code=True, device_map="auto")`'
    )
    if directory.layout == WEIGHTCAST:
        yield "- **transformers** does not read weightcast's own layout of groups."
    elif directory.layout == PLAIN:
        yield f"- **transformers** (tested with 5.23): {load}, with the code in the directory."
    elif directory.layout == COMPRESSED_TENSORS:
        yield (
            f"- **transformers** with compressed-tensors (int8 and int4 tested with 5.23): {load}. "
            "Asymmetric groups need `quantization_config=CompressedTensorsConfig(dequantize=True)`."
        )
    else:
        yield f"- **transformers** with a library for {directory.layout} (not tested): {load}."


def _vllm(output: Output, name: str) -> Iterator[str]:
    reason = vllm_refusal(output)
    if reason is not None:
        yield f"- **vLLM** does not run it: {reason}."
        return
    tested = "was not tested with this directory's types"
    if all(isinstance(kind, GroupType) for kind in _packed_types(output).values()):
        tested = "was tested with directories of this kind, serving on GPUs was not"
    yield (
        f"- **vLLM** up to 0.24, as later ones have no Grok-1: `vllm serve {name}`. Its loader "
        f"{tested}. It uses the erf form of GELU, the reference the tanh form: logits differ "
        "slightly."
    )


def _refusal(output: Output, runtime: str) -> str | None:
    """The reason that a note gives why a runtime does not run an output."""
    for note in output.notes:
        for words in _REFUSALS:
            who, found, reason = note.partition(words)
            if found and runtime in who:
                return reason
    return None


def _packed_types(output: Output) -> dict[str, object]:
    """What packed matrices are made of, by their names."""
    return {
        planned.tensor.name: getattr(planned.packed.packing, "type", planned.type)
        for planned in output.tensors
        if planned.packed is not None
    }


def vllm_refusal(output: Output) -> str | None:
    """Say why vLLM 0.24 does not load a directory; None if it does."""
    told = _refusal(output, "vLLM")
    directory = output.request.directory
    assert directory is not None
    if told is not None or directory.layout == WEIGHTCAST:
        return told or "it does not know weightcast's own layout of groups"
    for name, kind in _packed_types(output).items():
        if not isinstance(kind, GroupType):
            continue
        if directory.layout.startswith("gptq") and not kind.symmetric:
            return "its GPTQ has no zero points"
        if directory.layout == "awq" and kind.group_size == 0:
            return "its AWQ has no scales for whole rows"
        is_limited = directory.layout == COMPRESSED_TENSORS and kind.bits == 8
        if not is_limited or ".experts." not in name:
            continue
        if not kind.symmetric:
            return "its kernels for int8 experts have no zero points"
        if kind.group_size not in _VLLM_INT8_GROUPS:
            return (
                "its kernels for int8 experts take groups of 256 or a scale a row, not groups of "
                f"{kind.group_size}"
            )
    return None


def _sglang(output: Output, name: str) -> Iterator[str]:
    directory = output.request.directory
    assert directory is not None
    told = _refusal(output, "SGLang")
    if directory.layout == WEIGHTCAST:
        yield "- **SGLang** does not read weightcast's own layout of groups."
    elif told is not None:
        yield f"- **SGLang** does not run it: {told}."
    else:
        packed = " --quantization humming" if directory.is_packed else ""
        yield (
            f"- **SGLang** (checked against its source only): `python -m sglang.launch_server "
            f"--model-path {name}{packed}`. It caps router logits at 30, where the reference has "
            "no cap."
        )
