"""Panels: columns of many tasks come together, are written once, and only if all were made."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightcast
from tests.directories import read_directory
from tests.support import Golden
from weightcast.commands.text.plan import plan_lines, plan_values
from weightcast.converters import convert as conversion
from weightcast.converters.engine import panels
from weightcast.converters.engine.buffers import memory_estimate
from weightcast.converters.output import files as output_files
from weightcast.converters.plan import budget as memory
from weightcast.converters.plan.tiling import Tiling
from weightcast.converters.plan.workers import Workers
from weightcast.converters.sources.options import ConvertOptions
from weightcast.errors import LayoutError
from weightcast.formats.packed.layout import Part, Segment

NAMES = ["int8-g32-gptq", "int4-g32-asym-awq", "int8-g32"]


def converted(folder: Path, **options: Any) -> dict[str, bytes]:
    """Convert to directories of all NAMES at once; the bytes of their files."""
    folder.mkdir()
    outputs = [folder / f"m-{name}" for name in NAMES]
    weightcast.convert(Golden("wide").path, *outputs, no_tokenizer=True, **options)
    files = (file for output in outputs for file in sorted(output.iterdir()))
    return {f"{file.parent.name}/{file.name}": file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return converted(tmp_path_factory.mktemp("converted") / "whole", jobs=1)


@pytest.mark.parametrize("staged_bytes", [1, 20_000, 60_000])
def test_bytes_do_not_depend_on_panels(
    whole: dict[str, bytes],
    staged_bytes: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "STAGED_BYTES", staged_bytes)
    monkeypatch.setattr(memory, "TASK_BYTES", 5_000)
    monkeypatch.setattr(memory, "SLAB_BYTES", 50_000)
    assert converted(tmp_path / "cut", jobs=3) == whole


def test_whole_matrices_are_single_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []
    write_all = output_files.write_all

    def counted(fd: int, data: memoryview, offset: int) -> None:
        runs.append(len(data))
        write_all(fd, data, offset)

    monkeypatch.setattr(output_files, "write_all", counted)
    monkeypatch.setattr(memory, "TASK_BYTES", 5_000)
    path = tmp_path / "m-int8-g32-gptq"
    weightcast.convert(Golden("wide").path, path, no_tokenizer=True)
    wanted = Counter(
        tensor.nbytes
        for name, tensor in read_directory(path).items()
        if name.endswith((".qweight", ".scales"))
    )
    assert wanted.total() == 2 * 56
    assert wanted <= Counter(runs)


def test_memory_is_told(tmp_path: Path) -> None:
    options: dict[str, Any] = {"no_tokenizer": True}
    source = Golden("wide").path
    rows = conversion.prepare(source, [tmp_path / "m-int8-g32"], ConvertOptions(**options))
    columns = conversion.prepare(source, [tmp_path / "m-int8-g32-gptq"], ConvertOptions(**options))
    assert memory_estimate(rows, Workers(2)).staged == 0
    buffers = memory_estimate(columns, Workers(2))
    assert 0 < buffers.staged <= memory.STAGED_BYTES
    assert plan_values(columns, Workers(2))["buffer_bytes"] == buffers.host + buffers.staged
    assert any(
        "words" in line and "across rows" in line for line in plan_lines(columns, Workers(2))
    )
    assert not any("across rows" in line for line in plan_lines(rows, Workers(2)))


def test_one_buffer_where_two_do_not_fit(tmp_path: Path) -> None:
    prepared = conversion.prepare(
        Golden("wide").path, [tmp_path / "m-int8-g32-gptq"], ConvertOptions(no_tokenizer=True)
    )
    tiling = Tiling(2, memory.TASK_BYTES, memory.STAGED_BYTES)
    two = panels.panel_bytes(prepared.items, tiling)
    assert len(two) == 2
    tiling = replace(tiling, staged_bytes=2 * two[0] - 1)
    assert panels.panel_bytes(prepared.items, tiling) == two[:1]


def test_segments_that_belong_elsewhere_are_refused() -> None:
    """Rows 4 to 12 of a matrix [16, 3] with words of one row: 8 columns of 16."""
    slot = panels.Slot([Part(".w", "I32", (3, 16), 1)], 4, 12, np.zeros(128, np.uint8))
    data = np.arange(24, dtype=np.uint8).reshape(3, 8)
    placed = slot.place(Segment(".w", data, 4 * 6, 4 * 16))
    (whole,) = slot.segments()
    np.testing.assert_array_equal(placed.data, data)
    np.testing.assert_array_equal(whole.data[:, 8:16], data)
    assert (whole.offset, whole.stride, whole.data.shape) == (4 * 4, 4 * 16, (3, 32))
    assert placed.offset == 4 * 6
    other = Segment(".other", data, 0, 0)
    assert slot.place(other) is other
    for offset, stride, runs in ((8, 64, 3), (44, 64, 3), (24, 32, 3), (24, 64, 2)):
        with pytest.raises(LayoutError, match="is not where it belongs"):
            slot.place(Segment(".w", data[:runs], offset, stride))


def test_a_panel_with_a_task_that_failed_is_not_written() -> None:
    slot = panels.Slot([Part(".w", "I32", (1, 1), 1)], 0, 1, np.zeros(64, np.uint8))
    no_files: Any = None  # so that nothing can be written
    destination: Any = object()
    panel = panels.Panel({0: (destination, slot)}, 2, no_files)
    with pytest.raises(KeyError), panel:
        raise KeyError
    with panel:
        pass
    written = panels.Panel({0: (destination, slot)}, 1, no_files)
    with pytest.raises((AttributeError, AssertionError)), written:
        pass
