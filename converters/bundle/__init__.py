"""Bundles: model card, checksums, list of tensors and provenance beside each output.

They are made once all outputs are complete, from what was written: `release` hashes the files and
asks `provenance` for the in-toto statement and `model_card` for the README. The names of a bundle's
files are in `files.bundle_names`, since sources and targets must know them too.
"""

from weightcast.converters.bundle.model_card import CardErrors
from weightcast.converters.bundle.provenance import source_date
from weightcast.converters.bundle.release import earlier_notes, make_bundles

__all__ = ["CardErrors", "earlier_notes", "make_bundles", "source_date"]
