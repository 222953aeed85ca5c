"""Conversions on devices: the processor's bytes, all backends busy, everything given back.

The devices are stand-ins (stand_in_devices.py): what is tested is the pipeline around them.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightcast
from tests import imatrices
from tests.gguf_files import Part, bf16, floats, read, string, write
from tests.stand_in_devices import Backend, Machine
from tests.support import Golden, some
from weightcast.converters import convert as conversion
from weightcast.converters.engine import executor
from weightcast.converters.engine.buffers import memory_estimate
from weightcast.converters.families.grok1.synthetic import tiny_spec, write_checkpoint
from weightcast.converters.files.interrupts import ReleaseStack
from weightcast.converters.graph import matrices
from weightcast.converters.plan import budget as memory
from weightcast.converters.plan.tiling import Tiling, largest_task
from weightcast.converters.plan.workers import Workers, choose_workers
from weightcast.converters.sources import open_graph
from weightcast.converters.sources.options import ConvertOptions
from weightcast.errors import CheckpointError, DeviceError, LayoutError, RequestError
from weightcast.quant import backend, devices
from weightcast.quant.devices import choose_devices

WIDE = Golden("wide").path
NO_TOKENIZER = ConvertOptions(no_tokenizer=True)


def small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slabs of a few columns, tasks of a few rows: gathered reads and many seams."""
    monkeypatch.setattr(memory, "SLAB_BYTES", 200_000)
    monkeypatch.setattr(memory, "DEVICE_TASK_BYTES", 20_000)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def weighed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Importance for the golden checkpoint `wide`."""
    graph = open_graph(WIDE)
    folder = tmp_path_factory.mktemp("imatrix")
    weightcast.convert(WIDE, folder / "m-F32.gguf", no_tokenizer=True)
    shapes = {name: part.shape for name, part in read(folder / "m-F32.gguf").tensors.items()}
    assert graph.parameters == sum(int(np.prod(shape)) for shape in shapes.values())
    return imatrices.write_gguf(folder / "i.gguf", imatrices.model_entries(shapes))


@pytest.fixture(scope="module")
def any_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file with experts, floats of several kinds, and tensors that are only copied."""
    rng = np.random.default_rng(7)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    rounded = (normal(96, 512).view(np.uint32) & 0xFFFF0000).view(np.float32)
    tensors: dict[str, Part] = {
        "token_embd.weight": floats(normal(40, 256)),
        "blk.0.attn_norm.weight": floats(normal(256)),
        "blk.0.attn_q.weight": bf16(rounded),
        "blk.0.attn_v.weight": floats(normal(64, 256).astype(np.float16)),
        "blk.0.ffn_up_exps.weight": floats(normal(3, 70, 512)),
        "ids": Part(26, (5,), bytes(20)),
    }
    metadata = {"general.architecture": string("llama")}
    return write(tmp_path_factory.mktemp("gguf") / "m.gguf", metadata, tensors)


@pytest.fixture(scope="module")
def q8_0_gguf(any_gguf: Path) -> Path:
    """The same as Q8_0, all matrices."""
    path = any_gguf.with_name("q-Q8_0.gguf")
    weightcast.convert(any_gguf, path, pure=True)
    return path


@pytest.fixture(scope="module")
def int4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden checkpoint `wide` in packed groups."""
    path = tmp_path_factory.mktemp("packed") / "m-int4-g64-asym-awq"
    weightcast.convert(WIDE, path, no_tokenizer=True)
    return path


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with its own codes."""
    path = tmp_path_factory.mktemp("packed") / "m-int8-g32"
    weightcast.convert(WIDE, path, no_tokenizer=True)
    return path


# Source fixture, outputs, options.
CASES = {
    "shards to several outputs": (
        "tiny",
        ["a-Q4_K_M.gguf", "a-Q8_0.gguf", "a-BF16.gguf", "a-bf16", "a-f32"],
        {"no_tokenizer": True},
    ),
    "shards to split outputs": (
        "tiny",
        ["a-Q3_K_S.gguf", "a-f16"],
        {"no_tokenizer": True, "split": "1500K"},
    ),
    "rules": (
        "tiny",
        ["a-Q5_1.gguf"],
        {"no_tokenizer": True, "tensor_types": ["attn_q=MXFP4", "down_exps=TQ2_0"]},
    ),
    "importance for each expert": (
        WIDE,
        ["a-Q4_K_M.gguf", "a-Q3_K_S.gguf", "a-bf16"],
        {"no_tokenizer": True, "imatrix": "weighed"},
    ),
    "any GGUF": ("any_gguf", ["a-Q4_K_M.gguf", "a-IQ4_NL.gguf", "a-F16.gguf"], {}),
    "blocks": (
        "q8_0_gguf",
        ["a-Q4_K_M.gguf", "a-Q8_0.gguf", "a-F32.gguf", "a-BF16.gguf"],
        {"allow_requantize": True},
    ),
    "packed int4": (
        "int4",
        ["a-Q4_K_M.gguf", "a-F32.gguf", "a-bf16", "a-int4-g32-gptq"],
        {"no_tokenizer": True},
    ),
    "packed outputs": (
        WIDE,
        ["a-int4-g32", "a-int4-g64-asym-awq", "a-int8-g32", "a-int4-channel", "a-Q4_0.gguf"],
        {"no_tokenizer": True, "imatrix": "weighed"},
    ),
    "floats of 4 and 8 bits": (
        WIDE,
        ["a-mxfp4", "a-nvfp4", "a-fp8"],
        {"no_tokenizer": True},
    ),
    "packed int8": ("int8", ["a-Q8_0.gguf", "a-BF16.gguf"], {"no_tokenizer": True}),
}
TEAMS = [(1, 1), (2, 1), (5, 1), (2, 2), (5, 2)]
# Who works with whom depends on the team alone, what is made on the case alone: every case with the
# largest team, and every team with the first case.
CASES_AND_TEAMS = some(
    [(case, *team) for case in CASES for team in TEAMS],
    lambda case, *team: team == (5, 2) or case == next(iter(CASES)),
)


def run_case(
    case: str, folder: Path, request: pytest.FixtureRequest, **others: Any
) -> conversion.Summary:
    source, outputs, options = CASES[case]
    source = request.getfixturevalue(source) if isinstance(source, str) else source
    if "imatrix" in options:
        options = {**options, "imatrix": request.getfixturevalue(options["imatrix"])}
    return weightcast.convert(source, *(folder / name for name in outputs), **options, **others)


@pytest.fixture(scope="module")
def expected(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, dict[str, bytes], conversion.Summary]:
    """A case, and what the processor makes of it."""
    folder = tmp_path_factory.mktemp("processor")
    summary = run_case(request.param, folder, request)
    return request.param, contents(folder), summary


@pytest.mark.parametrize(
    ("expected", "workers", "n_devices"), CASES_AND_TEAMS, indirect=["expected"]
)
def test_bytes_are_those_of_the_processor(
    expected: tuple[str, dict[str, bytes], conversion.Summary],
    workers: int,
    n_devices: int,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case, files, summary = expected
    machine = Machine(n_devices).install(monkeypatch)
    # Drivers copy what was decoded here, to ordinary memory, through buffers of their own.
    machine.takes_pageable = case == "packed int4"
    machine.makes_pageable = case == "floats of 4 and 8 bits"
    small_tasks(monkeypatch)
    for name in ("quantize_matrix", "quantize_groups", "quantize_and_measure_groups"):
        monkeypatch.setattr(backend, name, lambda *given: pytest.fail("on the processor"))
    made = run_case(case, tmp_path, request, device="cuda", jobs=workers)
    assert contents(tmp_path) == files
    assert made.counts == summary.counts
    assert made.describe()["devices"] == [f"cuda:{n}" for n in range(n_devices)]
    assert summary.describe()["devices"] == ["cpu"]
    assert [backend.device.index for backend in machine.backends] == [
        n % n_devices for n in range(workers)
    ]
    assert machine.tasks.total() > len(made.plan.items) // 2
    machine.assert_given_back()


def test_columns_between_others(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Column-major experts: each is read with what lies between its values, and fits its memory."""
    source = Path(shutil.copytree(tiny, tmp_path / "source"))
    name = "transformer/decoder_layer_0/moe/linear/w"
    stored = matrices(open_graph(source)[name])[0].array
    raw = bytearray(stored.path.read_bytes())
    raw[raw.rindex(b"\x89", 0, stored.offset)] = 0x88  # numpy's is_fortran: NEWFALSE to NEWTRUE
    stored.path.write_bytes(raw)
    assert min(matrices(open_graph(source)[name])[0].strides) == 8
    items = conversion.prepare(source, [tmp_path / "a-Q4_K.gguf"], NO_TOKENIZER).items
    items = [item for item in items if item.view.array.path == stored.path]
    wanted = max(item.view.shape[0] * item.view.shape[1] * 8 for item in items)
    assert largest_task(items, Tiling(1, 1 << 30, 1 << 30)).source == wanted
    weightcast.convert(source, tmp_path / "a-Q4_K.gguf", no_tokenizer=True)
    machine = Machine().install(monkeypatch)
    weightcast.convert(source, tmp_path / "b-Q4_K.gguf", no_tokenizer=True, device="cuda")
    assert (tmp_path / "b-Q4_K.gguf").read_bytes() == (tmp_path / "a-Q4_K.gguf").read_bytes()
    machine.assert_given_back()


def test_copied_tensors_stay_on_the_host(
    q8_0_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine().install(monkeypatch)
    weightcast.convert(q8_0_gguf, tmp_path / "a-Q8_0.gguf", device="cuda", pure=True)
    assert read(tmp_path / "a-Q8_0.gguf") == read(q8_0_gguf)
    assert not machine.tasks.total()
    machine.assert_given_back()


def test_blocks_of_the_same_type_stay_on_the_host(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the metadata is written anew."""
    a, b = tmp_path / "a-Q8_0.gguf", tmp_path / "b-Q8_0.gguf"
    weightcast.convert(tiny, a, no_tokenizer=True)
    machine = Machine().install(monkeypatch)
    weightcast.convert(a, b, no_tokenizer=True, device="cuda")
    assert a.read_bytes() == b.read_bytes()
    assert machine.backends
    assert not any("Q8_0" in backend.types for backend in machine.backends)


def test_plain_floats_are_made_on_the_device(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine().install(monkeypatch)
    names = ["a-F32.gguf", "a-F16.gguf", "a-bf16"]
    weightcast.convert(tiny, *(tmp_path / n for n in names), no_tokenizer=True, device="cuda:0")
    assert set().union(*(backend.types for backend in machine.backends)) == {"F32", "F16", "BF16"}


def test_the_default_is_the_processor(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "count_devices", lambda: pytest.fail("asked for devices"))
    weightcast.convert(tiny, tmp_path / "a-Q8_0.gguf", no_tokenizer=True)


def test_devices_search_for_the_least_error(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(2).install(monkeypatch)
    for name, device in (("a", "cpu"), ("b", "cuda")):
        target = tmp_path / f"{name}-Q4_K.gguf"
        weightcast.convert(
            tiny, target, no_tokenizer=True, search="least-error", effort=1, device=device
        )
    assert machine.tasks.total() > 0
    made = [(tmp_path / f"{name}-Q4_K.gguf").read_bytes() for name in "ab"]
    assert made[0] == made[1]


# Overlap.


def test_backends_of_all_devices_work_at_once(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four backends on two devices meet in the middle of a task, again and again."""
    small_tasks(monkeypatch)
    meeting = threading.Barrier(4)
    met: list[str] = []

    def during(backend: Backend) -> None:
        if backend.tasks < 3:
            meeting.wait(timeout=60)
            met.append(backend.device.id)

    machine = Machine(2, during=during).install(monkeypatch)
    weightcast.convert(tiny, tmp_path / "a-Q4_K.gguf", no_tokenizer=True, device="cuda", jobs=4)
    assert sorted(met) == ["cuda:0"] * 6 + ["cuda:1"] * 6
    assert all(machine.tasks[f"cuda:{n}"] >= 6 for n in range(2))


def test_reading_goes_on_while_backends_work(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, second = executor.read_slab, threading.Event()
    slabs = 0

    def read_slab(*arguments: object) -> object:
        nonlocal slabs
        slab = real(*arguments)
        slabs += 1
        if slabs == 2:
            second.set()
        return slab

    def during(backend: Backend) -> None:
        # The first task does not end before the second slab has been read.
        assert second.wait(timeout=60)

    monkeypatch.setattr(executor, "read_slab", read_slab)
    Machine(during=during).install(monkeypatch)
    weightcast.convert(tiny, tmp_path / "a-Q4_K.gguf", no_tokenizer=True, device="cuda", jobs=1)


# Memory.


def test_page_locked_memory_is_bounded(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_tasks(monkeypatch)
    machine = Machine(2).install(monkeypatch)
    prepared = conversion.prepare(tiny, [tmp_path / "a-Q4_K_M.gguf"], NO_TOKENIZER)
    memory = memory_estimate(prepared, Workers(5, machine.chosen))
    conversion.run(prepared, 5, devices=machine.chosen)
    pinned = [pin.bytes.nbytes for pin in machine.pins]
    assert len(pinned) == 2 + 5
    assert sum(pinned) == memory.host  # a rest of pages apart, which these sizes do not have
    assert memory.host <= 2 * 200_000 + 5 * 20_000
    on_device = [backend.source_bytes + backend.blocks_bytes for backend in machine.backends]
    assert memory.device == sum(on_device[:3])  # three of five backends are on the first device


def test_estimates_for_real_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One expert of the release is a slab of 192 MiB; its Q4_K is made in tasks of 32 MiB."""
    spec = tiny_spec(
        emb_size=6144, key_size=128, num_q_heads=48, num_kv_heads=8, num_layers=1, num_experts=2
    )
    source = write_checkpoint(tmp_path, spec, sparse=True)
    prepared = conversion.prepare(source, [tmp_path / "a-Q4_K.gguf"], NO_TOKENIZER)
    workers = choose_workers(None, Machine().chosen)
    assert workers.count == 4
    memory = memory_estimate(prepared, workers)
    assert 0 < memory.host <= 2 * (192 << 20) + 4 * (32 << 20)
    many = memory_estimate(prepared, Workers(512, Machine(8).chosen))
    assert many.host <= 2 * (192 << 20) + (1 << 30)
    assert memory_estimate(prepared, Workers(4)).device == 0


# Failures.


def fail_at(task: int, problem: BaseException) -> Callable[[Backend], None]:
    """Fail in the middle of a task, counted over all backends."""
    lock, seen = threading.Lock(), 0

    def during(backend: Backend) -> None:
        nonlocal seen
        with lock:
            seen += 1
            is_due = seen == task
        if is_due:
            raise problem

    return during


OUT_OF_MEMORY = DeviceError("cuda:0: out of device memory")
BROKEN = {
    "first task": {"during": lambda: fail_at(1, OUT_OF_MEMORY)},
    "a later task": {"during": lambda: fail_at(40, OUT_OF_MEMORY)},
    "first backend": {"refuse_backend": 0},
    "last backend": {"refuse_backend": 4},
    "first buffer": {"refuse_pin": 0},
    "last buffer": {"refuse_pin": 6},
    "the end": {"fail_to_close": True},
    "a task and the end": {"fail_to_close": True, "during": lambda: fail_at(9, OUT_OF_MEMORY)},
}


@pytest.mark.parametrize("where", BROKEN)
def test_a_device_that_fails(
    where: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line, the earlier output as it was, what is finished kept, everything given back."""
    small_tasks(monkeypatch)
    options = {k: v() if callable(v) else v for k, v in BROKEN[where].items()}
    machine = Machine(2, **options).install(monkeypatch)
    earlier = tmp_path / "a-Q4_K_M.gguf"
    earlier.write_bytes(b"earlier")
    outputs = [earlier, tmp_path / "a-bf16"]
    with pytest.raises(DeviceError) as caught:
        weightcast.convert(tiny, *outputs, no_tokenizer=True, device="cuda", jobs=5)
    assert "\n" not in str(caught.value)
    if "task" in where:
        assert caught.value is OUT_OF_MEMORY
    assert earlier.read_bytes() == b"earlier"
    kept = {".a-bf16.partial", *(f".{path.name}.journal" for path in outputs)}
    assert {p.name for p in tmp_path.iterdir()} <= {earlier.name, f".{earlier.name}.partial", *kept}
    assert machine.pins or where == "first buffer"
    machine.assert_given_back()


def test_a_bad_value_is_named_as_on_the_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = np.ones((2, 200, 256), np.float32)
    x[1, 150, 5] = np.nan
    metadata = {"general.architecture": string("llama")}
    write(tmp_path / "m.gguf", metadata, {"a.weight": floats(x)})
    machine = Machine().install(monkeypatch)
    small_tasks(monkeypatch)
    said = []
    for device in ("cpu", "cuda"):
        with pytest.raises(LayoutError) as caught:
            weightcast.convert(tmp_path / "m.gguf", tmp_path / "o-Q4_K.gguf", device=device)
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert "a.weight, expert 1: NaN or infinity at [150, 5]" in said[0]
    machine.assert_given_back()


def test_what_was_opened_is_released_whatever_happens() -> None:
    given: list[str] = []

    def fails(name: str) -> Callable[[], None]:
        def release() -> None:
            given.append(name)
            raise DeviceError(name)

        return release

    def use(*releases: Callable[[], None], then: BaseException | None = None) -> None:
        with ReleaseStack() as stack:
            for release in releases:
                stack.add(release)
            if then is not None:
                raise then

    with pytest.raises(DeviceError, match=r"^b$"):
        use(lambda: given.append("a"), fails("c"), fails("b"))
    assert given == ["b", "c", "a"]
    with pytest.raises(CheckpointError, match="the first"):
        use(fails("d"), then=CheckpointError("the first"))
    assert given == ["b", "c", "a", "d"]


# The choice.


@pytest.mark.parametrize("wanted", ["tpu", "CUDA", "cuda:", "cuda:-1", "cuda:x", "", "cuda:0,1"])
def test_other_words_are_refused(wanted: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"is no device; possible: cpu, auto, cuda \(all"):
        weightcast.convert(tmp_path / "no source", tmp_path / "a-F16.gguf", device=wanted)


def chosen_ids(wanted: str) -> Sequence[str]:
    return choose_devices(wanted).describe()["devices"]


def test_one_device_or_all(monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(3).install(monkeypatch)
    assert chosen_ids("cpu") == ["cpu"]
    assert chosen_ids("cuda") == chosen_ids("auto") == ["cuda:0", "cuda:1", "cuda:2"]
    assert chosen_ids("cuda:1") == ["cuda:1"]
    assert choose_workers(None, choose_devices("cuda")).count == 12
    with pytest.raises(DeviceError) as caught:
        choose_devices("cuda:7")
    assert str(caught.value) == "cuda:7: this machine has 3 CUDA devices (cuda:0, cuda:1, cuda:2)"


def test_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(0).install(monkeypatch)
    for wanted in ("cuda", "cuda:0"):
        with pytest.raises(DeviceError, match="no CUDA driver on this machine"):
            choose_devices(wanted)
    chosen = choose_devices("auto")
    assert not chosen.cuda
    assert chosen.note.startswith("quantizing on the processor: no CUDA driver on this machine")


def test_auto_leaves_out_what_cannot_be_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(3).install(monkeypatch)
    all_of_them = machine.chosen.cuda
    broken = {1}

    def open_device(index: int) -> devices.Device:
        if index in broken:
            raise DeviceError(f"cuda:{index}: in use by another process")
        return all_of_them[index]

    monkeypatch.setattr(devices, "open_device", open_device)
    assert chosen_ids("auto") == ["cuda:0", "cuda:2"]
    assert choose_devices("auto").note == "cuda:1: in use by another process"
    with pytest.raises(DeviceError, match="cuda:1: in use"):
        choose_devices("cuda")
    assert chosen_ids("cuda:2") == ["cuda:2"]
    broken |= {0, 2}
    assert choose_devices("auto").note.startswith("quantizing on the processor: cuda:0: in use")
    assert chosen_ids("auto") == ["cpu"]
