"""Open whatever holds a model, and describe it as a graph: shards, GGUF, safetensors.

`containers` has the table of formats; `inputs` lists the files of a source for resuming and
provenance; `options` holds what a conversion can be asked.
"""

from weightcast.converters.sources.containers import CONTAINERS
from weightcast.converters.sources.detect import checkpoint_directory, container_of, resolve_source
from weightcast.converters.sources.inputs import (
    SOURCE,
    InputFile,
    Inputs,
    find_unwritten,
    hub_repository,
    list_inputs,
    source_files,
    unwritten_note,
    without_folders,
)
from weightcast.converters.sources.open import (
    open_as_it_is,
    open_family,
    open_graph,
    open_to_inspect,
    open_vocabulary,
)
from weightcast.converters.sources.options import (
    Adapters,
    ConvertOptions,
    Form,
    Group,
    Kind,
    Row,
    SourceOptions,
    listed_lora,
    listed_texts,
    parse_layers,
    parse_positive,
    parse_share,
    parse_size,
    written_size,
)

__all__ = [
    "CONTAINERS",
    "SOURCE",
    "Adapters",
    "ConvertOptions",
    "Form",
    "Group",
    "InputFile",
    "Inputs",
    "Kind",
    "Row",
    "SourceOptions",
    "checkpoint_directory",
    "container_of",
    "find_unwritten",
    "hub_repository",
    "list_inputs",
    "listed_lora",
    "listed_texts",
    "open_as_it_is",
    "open_family",
    "open_graph",
    "open_to_inspect",
    "open_vocabulary",
    "parse_layers",
    "parse_positive",
    "parse_share",
    "parse_size",
    "resolve_source",
    "source_files",
    "unwritten_note",
    "without_folders",
    "written_size",
]
