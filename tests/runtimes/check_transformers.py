"""Run directories in the transformers of this environment, and print what held as JSON.

    python check_transformers.py FOLDER SCRATCH

`FOLDER` holds directories and `directories.json`, which says how each is loaded; what it computes,
by the numpy forward on the weights that weightcast reads in it, is beside it in NAME.npz. Nothing
of weightcast is imported.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Read when transformers is imported: no network, and the cache for remote code is not the user's.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_MODULES_CACHE"] = str(Path(sys.argv[2]) / "modules")
os.environ["TQDM_DISABLE"] = "1"

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CompressedTensorsConfig,
    DynamicCache,
)

PROMPT, NEW = 8, 8


class Check:
    """The model of a directory, and what it is to compute.

    Rows of logits, of one token each, are held against the expected ones: a share of `rows` of them
    is to be nearer than `tolerance`, relative to their size. Arithmetic that rounds activations
    sends some tokens to other experts.
    """

    def __init__(self, directory: Path, options: dict[str, Any], scratch: Path) -> None:
        values = np.load(directory.with_suffix(".npz"))
        self.directory, self.options = directory, options
        self.saved_to = scratch / directory.name
        self.tokens = torch.tensor(values["tokens"]).long()
        self.expected = torch.tensor(values["logits"])
        self.model = self.load(directory)

    def load(self, directory: Path) -> Any:
        """Load a model, and insist that its tensors and the files' are the same ones."""
        given: dict[str, Any] = {"dtype": getattr(torch, self.options.get("dtype", "float32"))}
        if self.options.get("dequantize"):
            given["quantization_config"] = CompressedTensorsConfig(dequantize=True)
        model, found = AutoModelForCausalLM.from_pretrained(
            directory, trust_remote_code=True, output_loading_info=True, **given
        )
        wrong = {key: list(value)[:3] for key, value in found.items() if value}
        assert not wrong, wrong
        weights = dict(model.named_parameters())
        kept = {name: weights[name].dtype for name in weights if "norm" in name or ".gate." in name}
        assert set(kept.values()) == {torch.float32}, kept
        return model.eval()

    def near(self, found: Tensor, expected: Tensor) -> None:
        errors = (found - expected).norm(dim=-1) / expected.norm(dim=-1)
        share = float((errors < self.options["tolerance"]).float().mean())
        assert share >= self.options.get("rows", 1.0), (
            f"{share:.0%} of the rows are near, errors up to {float(errors.max()):.3g}"
        )

    def logits_of(self, tokens: Tensor, **given: Any) -> Tensor:
        with torch.no_grad():
            return self.model(tokens, **given).logits.float()

    def generate(self, tokens: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        """Generate: tokens with their prompts, and the logits of each step [batch, NEW, vocab]."""
        self.model.generation_config.eos_token_id = None  # an end would pad the rest of a row
        given = {"attention_mask": torch.ones_like(tokens), "do_sample": False, **options}
        given |= {"return_dict_in_generate": True, "output_logits": True}
        made = self.model.generate(tokens, max_new_tokens=NEW, **given)
        return made.sequences, torch.stack(made.logits, dim=1).float()

    def with_and_without(self, tokens: Tensor, **options: Any) -> Tensor:
        """Generate with a cache and without: the same tokens, of the same logits."""
        torch.manual_seed(3)
        found, logits = self.generate(tokens, use_cache=True, **options)
        torch.manual_seed(3)
        again, of_all = self.generate(tokens, use_cache=False, **options)
        self.near(logits, of_all)
        assert torch.equal(found, again), "not the tokens without a cache"
        return found

    def logits(self) -> None:
        self.near(self.logits_of(self.tokens), self.expected)
        mask = torch.ones_like(self.tokens)
        mask[:, 20:] = 0
        right = self.logits_of(self.tokens, attention_mask=mask)
        self.near(right[:, :20], self.expected[:, :20])

    def steps(self) -> None:
        """A prompt, one token, several: the cache by whichever name, and the same logits."""
        names = ["past_key_values"] if version() < (5, 24) else ["cache", "past_key_values"]
        if version() >= (5, 40):
            names = ["cache"]
        for name in names:
            cache, parts = DynamicCache(config=self.model.config), []
            for start, end in ((0, 20), (20, 21), (21, self.tokens.shape[1])):
                parts.append(self.logits_of(self.tokens[:, start:end], **{name: cache}))
            self.near(torch.cat(parts, 1), self.expected)

    def greedy(self) -> None:
        prompts = self.tokens[:, :PROMPT]
        found = self.with_and_without(prompts)
        _, logits = self.generate(prompts)
        self.near(logits, self.logits_of(found, logits_to_keep=NEW + 1)[:, :-1])

    def sampled(self) -> None:
        """The same seed draws the same tokens."""
        self.with_and_without(self.tokens[:, :PROMPT], do_sample=True, top_p=0.9)

    def padded(self) -> None:
        """Padding on the left changes no token; on either side a cache changes nothing."""
        lengths = [PROMPT, 3, 5, 1]
        for side in ("left", "right"):
            prompts = torch.zeros(len(lengths), PROMPT, dtype=torch.long)
            mask = torch.zeros_like(prompts)
            for n, length in enumerate(lengths):
                at = slice(PROMPT - length, PROMPT) if side == "left" else slice(0, length)
                prompts[n, at], mask[n, at] = self.tokens[n, :length], 1
            found = self.with_and_without(prompts, attention_mask=mask)
            for n, length in enumerate(lengths if side == "left" else ()):
                alone, _ = self.generate(self.tokens[n : n + 1, :length])
                assert torch.equal(found[n, PROMPT:], alone[0, length:]), "not as without padding"

    def static(self) -> None:
        """A cache of a fixed length, as compiled models have it."""
        prompts = self.tokens[:, :PROMPT]
        options = {"cache_implementation": "static", "disable_compile": True}
        found, expected = self.generate(prompts, **options), self.generate(prompts)
        self.near(found[1], expected[1])
        assert torch.equal(found[0], expected[0])

    def saved(self) -> None:
        """What is saved and loaded again computes the same."""
        before = self.model
        self.load(self.directory).save_pretrained(self.saved_to)
        try:
            self.model = self.load(self.saved_to)
            self.near(self.logits_of(self.tokens), self.expected)
        finally:
            self.model = before

    def refused(self) -> None:
        """An argument that the model does not know is an error, not nothing."""
        for call in (self.model, self.model.model):
            try:
                call(self.tokens, token_type_ids=self.tokens)
            except TypeError:
                continue
            raise AssertionError("token_type_ids were accepted")

    def trained(self) -> None:
        """With gradient checkpoints, as Trainer runs it: the same gradients."""
        found = []
        for checkpointing in (False, True):
            model = self.load(self.directory).train()
            if checkpointing:
                options = {"use_reentrant": False}
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
                try:  # layers would add their keys twice
                    model(self.tokens, past_key_values=DynamicCache(config=model.config))
                except ValueError:
                    pass
                else:
                    raise AssertionError("a cache was accepted")
            count = torch.tensor(self.tokens.numel())
            model(self.tokens, labels=self.tokens, num_items_in_batch=count).loss.backward()
            found.append(model.model.layers[0].self_attn.k_proj.weight.grad)
        assert found[0].abs().max() > 0
        torch.testing.assert_close(*found)

    def tokenizer(self) -> None:
        """What the tokenizer gives, the model takes."""
        tokenizer = AutoTokenizer.from_pretrained(self.directory)
        given = tokenizer("balim dofus", return_tensors="pt")
        assert set(given) == {"input_ids", "attention_mask"}, set(given)
        self.model.generate(**given, max_new_tokens=2, do_sample=False)


CHECKS: dict[str, Callable[[Check], None]] = {
    name: getattr(Check, name)
    for name in ("logits", "steps", "greedy", "sampled", "padded", "static", "saved", "refused")
}
# Of a directory of plain floats, with a tokenizer.
MORE: dict[str, Callable[[Check], None]] = {"trained": Check.trained, "tokenizer": Check.tokenizer}


def version() -> tuple[int, ...]:
    return tuple(int(number) for number in transformers.__version__.split(".")[:2])


def failures(directory: Path, options: dict[str, Any], scratch: Path) -> dict[str, str]:
    """Run the checks of a directory; what failed, and how."""
    try:
        check = Check(directory, options, scratch)
    except Exception as problem:
        traceback.print_exc()
        return {"load": f"{type(problem).__name__}: {problem}"}
    found = {}
    for name, run in {**CHECKS, **(MORE if options.get("more") else {})}.items():
        try:
            run(check)
        except Exception as problem:
            traceback.print_exc()
            found[name] = f"{type(problem).__name__}: {problem}"
    return found


def main() -> None:
    folder, scratch = (Path(argument) for argument in sys.argv[1:])
    torch.set_num_threads(1)
    directories = json.loads((folder / "directories.json").read_text())
    found = {name: failures(folder / name, directories[name], scratch) for name in directories}
    print(json.dumps({"transformers": transformers.__version__, "failures": found}))


if __name__ == "__main__":
    main()
