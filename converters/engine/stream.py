"""Stream work through threads: one reader that fills buffers, several workers that use them.

    reader     waits for a free buffer, fills it, hands out the tasks that use it, goes on
    workers    take tasks, in the order in which they were handed out
    buffers    return to the reader when all of their tasks are done

The calling thread is the reader. There are as many buffers as are given, so memory is bounded
however much is read, and two of them are enough to read and work at once. Convert, compare, verify
and hashing stream their work; they differ in what a buffer holds and in what a task does with it.

Only simple queues connect the threads, and only the reader counts what is out. Python raises
KeyboardInterrupt between any two steps of the main thread, which is the reader: within the locks
of a `Queue` or of a `ThreadPoolExecutor` it could leave one of them locked, and the workers waiting
for ever. A `SimpleQueue` has none that Python code holds.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Generic, TypeVar

from weightcast.converters.files import ignore_signals
from weightcast.errors import CheckpointError
from weightcast.text import option

Item = TypeVar("Item")
Buffer = TypeVar("Buffer")
Task = TypeVar("Task")
Result = TypeVar("Result")


def _nothing(_: object) -> None:
    """Do nothing."""


@dataclass(slots=True)
class BufferLease(Generic[Buffer]):
    """A buffer on lease to the tasks of one item; `finish` is called when all of them are done."""

    buffer: Buffer
    finish: Callable[[], None]
    open_tasks: int = 0


class Stream(Generic[Buffer, Task, Result]):
    """Buffers that go round between a reader and worker threads, for one run."""

    def __init__(self, buffers: Iterable[Buffer]) -> None:
        self._free = deque(buffers)
        self._threads: list[threading.Thread] = []
        self._is_stopping = False
        self._n_leases = self._n_tasks = 0
        self._results: dict[int, Result] = {}
        self._errors: dict[int, BaseException] = {}
        self._tasks: SimpleQueue[tuple[int, Task, BufferLease[Buffer]] | None] = SimpleQueue()
        self._done: SimpleQueue[BufferLease[Buffer]] = SimpleQueue()

    @property
    def is_stopping(self) -> bool:
        """Tell a long task that its result is not needed any more."""
        return self._is_stopping

    def run(
        self,
        items: Iterable[Item],
        read: Callable[[Item, Buffer], Iterable[Task]],
        workers: Sequence[Callable[[Task], Result]],
        *,
        finish: Callable[[Item], None] = _nothing,
        skip: Callable[[Task], None] = _nothing,
    ) -> list[Result]:
        """Read items into buffers, and work on their tasks. Returns the results in task order.

        `read` fills a buffer and gives the tasks that use it, which are handed out one by one: it
        may wait for one before it gives the next. `workers` are called with tasks, each in a thread
        of its own. `finish` gets each item when its tasks are done, in the calling thread. Once
        something failed, `skip` gets the tasks that are left, to release what they hold.

        Raises what the reader raises, or else the error of the first task that failed; whichever it
        is, no thread is at work any more. Raises CheckpointError if the system has no more threads.
        """
        self._threads = [threading.Thread(target=self._work, args=(work, skip)) for work in workers]
        try:
            self._start()
            for item in items:
                lease = BufferLease(self._free_buffer(), partial(finish, item))
                if self._is_stopping:
                    break
                self._hand_out(lease, read(item, lease.buffer))
            while self._n_leases and not self._is_stopping:
                self._await_task()
        finally:
            self._stop()
        if self._errors:
            raise self._errors[min(self._errors)]
        return [self._results[number] for number in range(self._n_tasks)]

    def _start(self) -> None:
        try:
            for thread in self._threads:
                thread.start()
        except RuntimeError as problem:  # a limit of the system on threads
            raise CheckpointError(
                f"cannot start {len(self._threads)} workers ({problem}); use fewer {option('jobs')}"
            ) from None

    def _stop(self) -> None:
        """End the threads: what they use is in use until then."""
        self._is_stopping = True
        with ignore_signals():
            for _ in self._threads:
                self._tasks.put(None)
            for thread in self._threads:
                if thread.is_alive():
                    thread.join()

    def _free_buffer(self) -> Buffer:
        """Wait until a buffer is free."""
        while not self._free:
            self._await_task()
        return self._free.popleft()

    def _hand_out(self, lease: BufferLease[Buffer], tasks: Iterable[Task]) -> None:
        self._n_leases += 1
        for task in tasks:
            lease.open_tasks += 1
            self._tasks.put((self._n_tasks, task, lease))
            self._n_tasks += 1
            if self._is_stopping:
                return
        if not lease.open_tasks:
            self._take_back(lease)

    def _await_task(self) -> None:
        """Wait until a task is done, of an item whose tasks are all handed out."""
        lease = self._done.get()
        lease.open_tasks -= 1
        if not lease.open_tasks:
            self._take_back(lease)

    def _take_back(self, lease: BufferLease[Buffer]) -> None:
        self._n_leases -= 1
        self._free.append(lease.buffer)
        if not self._is_stopping:
            lease.finish()

    def _work(self, work: Callable[[Task], Result], skip: Callable[[Task], None]) -> None:
        """Take tasks until there are no more."""
        while (handed_out := self._tasks.get()) is not None:
            number, task, lease = handed_out
            try:
                if self._is_stopping:
                    skip(task)
                else:
                    self._results[number] = work(task)
            except BaseException as error:
                self._errors[number] = error
                self._is_stopping = True
            finally:
                self._done.put(lease)
