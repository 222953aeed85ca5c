"""The JSON Schema of sensitivities: `python -m weightcast.converters.recipes.sensitivity_schema`.

`docs/sensitivity.schema.json` holds what this prints; run it after a change of `sensitivity`.
"""

from __future__ import annotations

import json
import sys
from typing import Any, Final

from weightcast.converters.recipes.sensitivity import (
    FORMAT,
    MAX_AXES,
    MAX_COST,
    MAX_TEXT,
    MAX_WHOLE,
    VERSION,
    by_bits,
)
from weightcast.quant.types import TYPES

_TEXT: Final = {"type": "string", "minLength": 1, "maxLength": MAX_TEXT}
_WHOLE: Final = {"type": "integer", "minimum": 1, "exclusiveMaximum": MAX_WHOLE}
_SHAPE: Final = {"type": "array", "items": _WHOLE, "minItems": 1, "maxItems": MAX_AXES}


def schema_text() -> str:
    """Describe files of sensitivities in JSON Schema, as text."""
    source = _record(
        name={**_TEXT, "description": "the model, for people"},
        parameters={**_WHOLE, "description": "all weights of the model"},
        tensors={**_TEXT, "description": "digest of the names and shapes of its matrices"},
    )
    measured = _record(
        text={**_TEXT, "description": "what was read, for people"},
        tokens={**_WHOLE, "description": "how many of the text were read"},
        context={**_WHOLE, "description": "tokens of each sequence"},
        search={**_TEXT, "description": "rule by which tensors were quantized: ggml, least-error"},
        importance={"type": "boolean", "description": "with an importance matrix"},
    )
    local = _costs("mean over tokens of |h' - h|^2 / |h|^2 of the layer's output")
    probe = _costs("mean divergence (KL, nats a token) of the predictions")
    tensor = _record("probe", shape=_SHAPE, local={**local, "minProperties": 1}, probe=probe)
    values = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"weightcast sensitivities, version {VERSION}",
        **_record(
            format={"const": FORMAT},
            version={"const": VERSION},
            source=source,
            measured=measured,
            tensors={
                "description": "by GGUF names: what quantizing this tensor alone does",
                "type": "object",
                "minProperties": 1,
                "additionalProperties": tensor,
            },
        ),
    }
    return f"{json.dumps(values, indent=2)}\n"


def _record(*optional: str, **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "required": [name for name in properties if name not in optional],
        "additionalProperties": False,
        "properties": properties,
    }


def _costs(description: str) -> dict[str, Any]:
    return {
        "description": description,
        "type": "object",
        "propertyNames": {"enum": by_bits(TYPES)},
        "additionalProperties": {"type": "number", "minimum": 0, "maximum": MAX_COST},
    }


if __name__ == "__main__":
    sys.stdout.write(schema_text())
