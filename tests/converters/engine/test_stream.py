"""One reader and several workers: order, bounded buffers, the first error, interrupts anywhere."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weightcast.converters.engine import stream
from weightcast.converters.engine.stream import Stream
from weightcast.errors import CheckpointError


@dataclass
class Buffer:
    """A buffer that must not be filled while tasks use it."""

    content: int = -1
    users: int = 0
    fillings: int = 0

    def fill(self, content: int, users: int) -> None:
        assert self.users == 0
        self.fillings += 1
        self.content, self.users = content, users


@dataclass
class Task:
    item: int
    number: int
    buffer: Buffer

    @property
    def id(self) -> int:
        return 1000 * self.item + self.number


class Trial:
    """Streams items, which are numbers of tasks; notes what is read and done, in order."""

    def __init__(self, buffers: int = 2, workers: int = 3) -> None:
        self.buffers = [Buffer() for _ in range(buffers)]
        self.stream = Stream[Buffer, Task, int](self.buffers)
        self.workers = workers
        self.read_items: list[int] = []
        self.done: list[int] = []
        self.skipped: list[int] = []
        self.finished: list[int] = []
        self.lock = threading.Lock()
        # What happens in between.
        self.as_read: Callable[[int], None] = lambda number: None
        self.at_work: Callable[[int], None] = lambda number: None

    def run(self, counts: list[int]) -> list[int]:
        return self.stream.run(
            list(enumerate(counts)),
            self.read,
            [self.work] * self.workers,
            finish=self.finish,
            skip=self.skip,
        )

    def read(self, item: tuple[int, int], buffer: Buffer) -> Iterator[Task]:
        number, count = item
        assert threading.current_thread() is threading.main_thread()
        buffer.fill(number, count)
        self.read_items.append(number)
        self.as_read(number)
        for n in range(count):
            yield Task(number, n, buffer)

    def work(self, task: Task) -> int:
        assert threading.current_thread() is not threading.main_thread()
        assert task.buffer.content == task.item
        self.at_work(task.id)
        assert task.buffer.content == task.item
        with self.lock:
            task.buffer.users -= 1
            self.done.append(task.id)
        return task.id

    def skip(self, task: Task) -> None:
        with self.lock:
            self.skipped.append(task.id)

    def finish(self, item: tuple[int, int]) -> None:
        assert threading.current_thread() is threading.main_thread()
        assert [done // 1000 for done in self.done].count(item[0]) == item[1]
        self.finished.append(item[0])


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert_no_threads()


def assert_no_threads() -> None:
    """One whose start was interrupted may still be on its way to its end."""
    end = time.monotonic() + 10
    while any(thread.name.startswith("Thread-") for thread in threading.enumerate()):
        assert time.monotonic() < end
        time.sleep(0.001)


# Order, and memory.


def ids(counts: list[int]) -> list[int]:
    return [1000 * item + n for item, count in enumerate(counts) for n in range(count)]


@given(
    counts=st.lists(st.integers(0, 7), max_size=12),
    buffers=st.integers(1, 4),
    workers=st.integers(1, 5),
    delays=st.lists(st.sampled_from([0, 0, 0, 0.001]), min_size=8, max_size=8),
)
@settings(max_examples=60)
def test_results_are_in_task_order_whatever_the_timing(
    counts: list[int], buffers: int, workers: int, delays: list[float]
) -> None:
    trial = Trial(buffers, workers)
    trial.at_work = lambda number: time.sleep(delays[number % 8])
    trial.as_read = lambda number: time.sleep(delays[-number % 8])
    assert trial.run(counts) == ids(counts)
    assert trial.read_items == list(range(len(counts)))
    assert sorted(trial.done) == ids(counts)
    assert sorted(trial.finished) == trial.read_items
    assert not trial.skipped


def test_one_worker_takes_tasks_in_their_order() -> None:
    trial = Trial(workers=1)
    trial.run([3, 0, 4])
    assert trial.done == ids([3, 0, 4])
    assert trial.finished == [1, 0, 2]  # one without tasks is finished as it is read


def test_no_items() -> None:
    assert Trial().run([]) == []


def test_no_more_is_read_than_there_are_buffers() -> None:
    trial, may_go_on = Trial(buffers=3, workers=1), threading.Event()
    trial.at_work = lambda number: None if may_go_on.wait(60) else pytest.fail("never read")

    def as_read(number: int) -> None:
        if number == 2:  # the third fits, though no task is done yet
            time.sleep(0.05)
            assert trial.read_items == [0, 1, 2]
            assert not trial.done
            may_go_on.set()

    trial.as_read = as_read
    assert trial.run([2] * 8) == ids([2] * 8)
    assert sum(buffer.fillings for buffer in trial.buffers) == 8


def test_all_workers_work_at_once_while_the_reader_reads() -> None:
    trial, meeting = Trial(workers=3), threading.Barrier(4)

    def meet(number: int) -> None:
        if number in (0, 1, 2):
            meeting.wait(60)

    def as_read(number: int) -> None:
        if number == 1:
            meeting.wait(60)

    trial.at_work, trial.as_read = meet, as_read
    assert len(trial.run([3, 1])) == 4


def test_tasks_are_handed_out_before_the_next_is_made() -> None:
    """A reader may wait for what an earlier task of the same item releases."""
    released = threading.Semaphore(1)

    def read(item: int, buffer: None) -> Iterator[int]:
        for number in range(5):
            assert released.acquire(timeout=60)
            yield number

    def work(task: int) -> int:
        released.release()
        return task

    assert Stream[None, int, int]([None]).run([0], read, [work]) == [0, 1, 2, 3, 4]


# Errors.


def fail_at(*numbers: int, after: Callable[[], object] = lambda: None) -> Callable[[int], None]:
    def fail(number: int) -> None:
        if number in numbers:
            after()
            raise KeyError(number)

    return fail


@pytest.mark.parametrize("workers", [1, 4])
def test_a_task_that_fails_ends_the_run(workers: int) -> None:
    trial = Trial(workers=workers)
    trial.at_work = fail_at(1)
    with pytest.raises(KeyError, match=r"^1$"):
        trial.run([5] * 100)
    assert len(trial.read_items) < 100
    seen = sorted([1, *trial.done, *trial.skipped])
    assert seen == ids([5] * 100)[: len(seen)]  # whatever was handed out is done or skipped
    assert 0 not in trial.finished
    assert trial.stream.is_stopping


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_of_several_errors_the_first_tasks_is_raised(order: tuple[int, ...]) -> None:
    trial, all_at_work = Trial(workers=3), threading.Barrier(3)

    def fail(number: int) -> None:
        if number < 3:
            all_at_work.wait(60)
            time.sleep(0.03 * order.index(number))
            raise KeyError(number)

    trial.at_work = fail
    with pytest.raises(KeyError, match=r"^0$"):
        trial.run([3, 1, 1])


def test_an_error_while_the_reader_waits_for_a_task() -> None:
    """What the skipped tasks hold is released, so the reader does not wait for ever."""
    slots = threading.Semaphore(2)
    skipped = []

    def read(item: int, buffer: None) -> Iterator[int]:
        for number in range(5):
            assert slots.acquire(timeout=60)
            yield number

    def work(task: int) -> None:
        time.sleep(0.05)  # until the reader waits
        slots.release()
        raise KeyError(task)

    def skip(task: int) -> None:
        skipped.append(task)
        slots.release()

    with pytest.raises(KeyError, match=r"^0$"):
        Stream[None, int, None]([None]).run([0], read, [work], skip=skip)
    assert skipped


def test_what_goes_wrong_while_skipping_is_an_error_of_its_task() -> None:
    trial = Trial(workers=1)
    trial.at_work = fail_at(0, after=lambda: time.sleep(0.05))

    def skip(task: Task) -> None:
        raise ValueError(task.id)

    with pytest.raises(KeyError, match=r"^0$"):
        trial.stream.run([(0, 3)], trial.read, [trial.work], skip=skip)


def test_a_reader_that_fails() -> None:
    trial = Trial()
    trial.as_read = fail_at(3)
    trial.at_work = lambda number: time.sleep(0.01)
    with pytest.raises(KeyError, match=r"^3$"):
        trial.run([3] * 5)
    assert trial.read_items == [0, 1, 2, 3]


def test_a_reader_that_fails_tells_more_than_its_workers() -> None:
    """The error of the reader is the one that is raised, as it was the one that ended the run."""
    trial, failed = Trial(workers=1), threading.Event()
    trial.at_work = fail_at(0, after=failed.set)

    def as_read(number: int) -> None:
        if number == 1:
            failed.wait(60)
            raise CheckpointError("the source ends")

    trial.as_read = as_read
    with pytest.raises(CheckpointError, match="the source ends"):
        trial.run([1, 1])


def test_a_last_step_that_fails() -> None:
    def finish(item: int) -> None:
        raise KeyError(item)

    tasks = Stream[None, int, int]([None])
    with pytest.raises(KeyError, match=r"^7$"):
        tasks.run([7], lambda item, buffer: [item], [lambda task: task], finish=finish)


@pytest.mark.parametrize("death", [SystemError("a worker died"), MemoryError(), SystemExit(3)])
def test_a_worker_that_dies(death: BaseException) -> None:
    trial = Trial()

    def die(number: int) -> None:
        if number == 1001:
            raise death

    trial.at_work = die
    with pytest.raises(type(death)) as caught:
        trial.run([3] * 50)
    assert caught.value is death


def test_long_tasks_can_ask_whether_to_stop() -> None:
    trial, begun = Trial(workers=2), threading.Event()

    def at_work(number: int) -> None:
        if number == 0:
            begun.set()
            end = time.monotonic() + 60
            while not trial.stream.is_stopping:
                assert time.monotonic() < end
                time.sleep(0.001)
        elif number == 1:
            begun.wait(60)
            raise KeyError(number)

    trial.at_work = at_work
    with pytest.raises(KeyError, match=r"^1$"):
        trial.run([2])
    assert trial.done == [0]


# Threads.


@pytest.mark.parametrize("started", [0, 1, 3])
def test_a_limit_on_threads(started: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Limited(threading.Thread):
        begun = 0

        def start(self) -> None:
            if Limited.begun == started:
                raise RuntimeError("can't start new thread")
            Limited.begun += 1
            super().start()

    monkeypatch.setattr(stream.threading, "Thread", Limited)
    trial = Trial(workers=4)
    with pytest.raises(CheckpointError) as caught:
        trial.run([1])
    said = "cannot start 4 workers (can't start new thread); use fewer jobs"
    assert str(caught.value) == said
    assert not trial.read_items


# Interrupts: a signal raises KeyboardInterrupt in the main thread, wherever it is.


@pytest.fixture
def default_handler() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt(*_: Any) -> None:
    signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures("default_handler")
@pytest.mark.parametrize("number", [0, 1, 5])
def test_interrupted_in_the_reader(number: int) -> None:
    trial = Trial()
    trial.at_work = lambda task: time.sleep(0.005)
    trial.as_read = lambda item: interrupt() if item == number else None
    with pytest.raises(KeyboardInterrupt):
        trial.run([4] * 8)
    assert trial.read_items == list(range(number + 1))
    assert len(trial.done) + len(trial.skipped) == 4 * number


@pytest.mark.usefixtures("default_handler")
def test_interrupted_while_a_worker_works() -> None:
    """The main thread waits then; the task comes to its end, the others are skipped."""
    trial = Trial(workers=1)

    def at_work(number: int) -> None:
        if number == 0:
            time.sleep(0.1)  # until the main thread waits
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            time.sleep(0.1)

    trial.at_work = at_work
    with pytest.raises(KeyboardInterrupt):
        trial.run([4, 4, 4])
    assert trial.done == [0]
    assert trial.skipped == ids([4, 4])[1:]


@pytest.mark.usefixtures("default_handler")
def test_interrupts_while_threads_are_joined_are_ignored() -> None:
    trial, begun = Trial(workers=2), threading.Event()

    def at_work(number: int) -> None:
        begun.set()
        for _ in range(4):
            time.sleep(0.03)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    def as_read(item: int) -> None:
        if item == 1:
            begun.wait(60)
            interrupt()

    trial.at_work, trial.as_read = at_work, as_read
    with pytest.raises(KeyboardInterrupt):
        trial.run([1, 1])
    assert trial.done == [0]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("default_handler")
@given(moment=st.floats(0, 0.03), seed=st.integers(0, 3))
@settings(max_examples=40)
def test_interrupted_at_any_moment(moment: float, seed: int) -> None:
    """Nothing hangs, and no thread is left; a run that was complete by then has its results."""
    trial, counts = Trial(buffers=1 + seed % 2, workers=1 + seed), [3] * 10
    trial.at_work = lambda number: time.sleep(0.001)
    main = threading.main_thread().ident or 0
    timer = threading.Timer(moment, lambda: signal.pthread_kill(main, signal.SIGINT))
    try:
        timer.start()
        assert trial.run(counts) == ids(counts)
        timer.join()
    except KeyboardInterrupt:
        timer.join()
    assert_no_threads()
