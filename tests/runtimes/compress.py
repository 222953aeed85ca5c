"""Quantize a directory with llm-compressor, by schemes that need little or no calibration.

    python compress.py DIRECTORY OUT SCHEME...

Nothing of weightcast is imported.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Read when the libraries are imported: no network, no devices, no cache of the user's.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = sys.argv[2]
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import QuantizationModifier
from transformers import AutoModelForCausalLM

# Their activations have scales of their own, for which some text is run.
CALIBRATED = ("FP8", "NVFP4")


def main() -> None:
    directory, out = (Path(argument) for argument in sys.argv[1:3])
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 400, (4, 32), generator=generator).tolist()
    data = Dataset.from_dict({"input_ids": tokens, "attention_mask": [[1] * 32] * 4})
    for scheme in sys.argv[3:]:
        model = AutoModelForCausalLM.from_pretrained(
            directory, trust_remote_code=True, dtype=torch.bfloat16
        )
        text = {"dataset": data, "max_seq_length": 32, "pipeline": "basic"}
        oneshot(
            model=model,
            recipe=QuantizationModifier(
                targets="Linear", scheme=scheme, ignore=["lm_head", "re:.*gate$"]
            ),
            trust_remote_code_model=True,
            **(text if scheme in CALIBRATED else {}),
        )
        model.save_pretrained(out / scheme, save_compressed=True)


if __name__ == "__main__":
    main()
