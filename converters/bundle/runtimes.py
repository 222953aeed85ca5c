"""Say how to run an output in each runtime that takes it, and which do not.

benchmarks/runtimes/README.md says how this was found.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from typing import Final

from weightcast.converters.graph import TensorGraph
from weightcast.converters.recipes import PLAIN
from weightcast.converters.targets.target import Output
from weightcast.formats.packed import LAYOUTS
from weightcast.formats.packed.readers import Readers
from weightcast.quant.types import WeightType
from weightcast.text import in_code

# How notes begin that say of a runtime why not.
_REFUSALS: Final = ("cannot load this: ", "cannot run this model: ", "will be wrong: ")
# Plain floats, which every runtime reads that has the model.
_PLAIN_READERS: Final = Readers(
    transformers="(tested with 4.57 to 5.24)", transformers_hint=", with the code in the directory"
)


def running(output: Output, graph: TensorGraph, *, no_tokenizer: bool) -> Iterator[str]:
    """Give the section's lines, in Markdown."""
    if graph.container == "peft":
        name = in_code(shlex.quote(output.files[0].path.name))
        command = f"llama-cli -m MODEL.gguf --lora {name}"
        yield f"- **llama.cpp**, beside its model in any type: `{command}`."
        return
    yield "All of the weights must fit into memory, of GPUs or of the machine."
    yield ""
    if not output.request.target.is_directory:
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


def _readers(output: Output) -> Readers:
    directory = output.request.directory
    assert directory is not None
    if directory.layout == PLAIN:
        return _PLAIN_READERS
    return LAYOUTS[directory.layout].traits.readers


def _transformers(output: Output) -> Iterator[str]:
    told, readers = _refusal(output, "transformers"), _readers(output)
    if readers.unread:
        yield f"- **transformers** does not read {readers.unread}."
        return
    if told is not None:
        yield f"- **transformers** does not run it: {told}."
        return
    name = in_code(json.dumps(output.request.path.name, ensure_ascii=False))
    load = (
        f'`AutoModelForCausalLM.from_pretrained({name}, trust_remote_code=True, device_map="auto")`'
    )
    yield f"- **transformers** {readers.transformers}: {load}{readers.transformers_hint}."


def _vllm(output: Output, name: str) -> Iterator[str]:
    reason = vllm_refusal(output)
    if reason is not None:
        yield f"- **vLLM** does not run it: {reason}."
        return
    tested = "was not tested with this directory's types"
    readers = _readers(output)
    if all(readers.tested_in_vllm(weight_type) for weight_type in _packed_types(output).values()):
        tested = "was tested with directories of this kind, serving on GPUs was not"
    yield (
        f"- **vLLM** up to 0.24, as later ones have no Grok-1: `vllm serve {name}`. Its loader "
        f"{tested}. It uses the erf form of GELU, the reference the tanh form: logits differ "
        "slightly."
    )


def _refusal(output: Output, runtime: str) -> str | None:
    """Give the reason of a note why a runtime does not run an output."""
    for note in output.notes:
        for words in _REFUSALS:
            who, found, reason = note.partition(words)
            if found and runtime in who:
                return reason
    return None


def _packed_types(output: Output) -> dict[str, WeightType]:
    """Map the names of packed matrices to their types."""
    return {
        planned.tensor.name: planned.packed.packing.type
        for planned in output.tensors
        if planned.packed is not None
    }


def vllm_refusal(output: Output) -> str | None:
    """Say why vLLM 0.24 does not load a directory; None if it does."""
    told, readers = _refusal(output, "vLLM"), _readers(output)
    if told is not None:
        return told
    if readers.unread:
        return f"it does not know {readers.unread}"
    for name, weight_type in _packed_types(output).items():
        reason = readers.in_vllm(weight_type, ".experts." in name)
        if reason is not None:
            return reason
    return None


def _sglang(output: Output, name: str) -> Iterator[str]:
    directory = output.request.directory
    assert directory is not None
    told, readers = _refusal(output, "SGLang"), _readers(output)
    if readers.unread:
        yield f"- **SGLang** does not read {readers.unread}."
    elif told is not None:
        yield f"- **SGLang** does not run it: {told}."
    else:
        packed = " --quantization humming" if directory.is_packed else ""
        yield (
            f"- **SGLang** (checked against its source only): `python -m sglang.launch_server "
            f"--model-path {name}{packed}`. It caps router logits at 30, where the reference has "
            "no cap."
        )
