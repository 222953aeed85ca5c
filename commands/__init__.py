"""Commands of the command line, the only rooms that print.

A command is a module of this package, named after it, with a click command of the same name, and a
line here: the first sentence of its help. A module is imported only when its command is run, so
that `weightcast --help` needs none of them.
"""

from typing import Final

COMMANDS: Final = {
    "clean": "Remove what interrupted runs left of outputs.",
    "compare": "Measure what B's weights differ by from those of A, tensor by tensor.",
    "convert": "Convert SRC to one or several outputs, in one read.",
    "demo": "Convert a tiny Grok-1, let llama.cpp write with what was made, and compare.",
    "evaluate": "Measure what artifacts lose: run SRC and each ARTIFACT over a text, and compare.",
    "imatrix": "Make an importance matrix: run SRC over TEXT, as llama-imatrix does.",
    "inspect": "Show what is in a checkpoint: hyperparameters, tensors, shapes, sizes.",
    "merge": "Merge the parts of a split GGUF file into one, OUT.",
    "report": "Show error reports of conversions: as a page, OUT.html, or as a summary, OUT.md.",
    "sensitivity": "Measure what each type costs each tensor of SRC, with real activations.",
    "split": "Split SRC, a GGUF file, into the parts OUT-00001-of-0000N.gguf and so on.",
    "types": "List the types that outputs can have: bits per weight, importance matrix, runtimes.",
    "verify": "Check that ARTIFACT is whole and holds the weights of its source.",
}
