"""Work on blocks of tokens side by side, with results that do not depend on how many at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Final, TypeVar

import numpy as np

# Tokens that are worked on at once. How a product rounds may depend on how many rows it has, so
# neither the memory nor the number of workers may change this.
BLOCK_TOKENS: Final = 512

Item = TypeVar("Item")
Result = TypeVar("Result")


def blocks(n_tokens: int) -> list[slice]:
    """Cut tokens into blocks."""
    starts = range(0, n_tokens, BLOCK_TOKENS)
    return [slice(start, min(n_tokens, start + BLOCK_TOKENS)) for start in starts]


class Pool:
    """Threads that call a function for items, and give the results in the order of these."""

    def __init__(self, jobs: int, executor: ThreadPoolExecutor) -> None:
        self.jobs = jobs
        self._executor = executor

    def each(self, items: Iterable[Item], function: Callable[[Item], Result]) -> list[Result]:
        """Call `function` for each item. Raises what the first of the calls to fail raised."""
        if self.jobs == 1:
            return [_quietly(function, item) for item in items]
        return list(self._executor.map(partial(_quietly, function), items))


def _quietly(function: Callable[[Item], Result], item: Item) -> Result:
    # What is not finite is looked for in states, after each layer, and said once.
    with np.errstate(over="ignore", invalid="ignore"):
        return function(item)


@contextmanager
def pool(jobs: int) -> Iterator[Pool]:
    """Start workers; at the end, also by an interrupt, what none has begun is left undone."""
    executor = ThreadPoolExecutor(jobs)
    try:
        yield Pool(jobs, executor)
    finally:
        executor.shutdown(cancel_futures=True)
