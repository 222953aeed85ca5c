"""Tell what interrupted runs left: what `clean` prints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from weightcast.commands.text.sizes import short_size
from weightcast.converters.output import Leftover
from weightcast.text import count


def clean_lines(found: Sequence[Leftover], *, dry_run: bool) -> Iterator[str]:
    """Give a line for each thing that was left, then how much it is."""
    going = [each for each in found if each.reason is None]
    sizes = [short_size(each.nbytes) for each in going]
    width = max(map(len, sizes), default=0)
    for each, size in zip(going, sizes, strict=True):
        share = f" ({each.share:.0%} of {each.output.name})" if each.share else ""
        yield f"{size:>{width}}  {each.path}{share}"
    yield from (f"note: {each.path}: stays: {each.reason}" for each in found if each.reason)
    done = "would be removed" if dry_run else "removed"
    total = short_size(sum(each.nbytes for each in going))
    yield f"{count(len(going), 'leftover')} {done}, {total}" if going else "nothing to remove"
