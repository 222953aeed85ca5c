"""The folder of states beside an output: whole, locked, and never more deleted than was written."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from weightcast.converters.output import finished_layers
from weightcast.converters.output.states import foreign_state
from weightcast.errors import OutputError, TakenError
from weightcast.evaluation.memory import Activations
from weightcast.evaluation.saved import SavedStates

STATES = {"states-0": np.arange(6, dtype=np.float32).reshape(2, 3)}


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out.gguf"


def saved_of(output: Path, *, resume: bool = True, of: str = "a") -> SavedStates:
    return SavedStates(output, {"tokens": of}, resume)


def keep(output: Path, *layers: int) -> Path:
    """Leave the states of a run that was killed after some layers; gives the folder."""
    saved = saved_of(output)
    saved.folder.mkdir(exist_ok=True)
    for done in layers:
        saved.save(done, STATES)
    return saved.folder


@given(
    kept=st.dictionaries(
        st.text("abc:.-0123", min_size=1, max_size=12).filter(lambda name: ".." not in name),
        st.one_of(
            arrays_of.arrays(
                st.sampled_from([np.float32, np.float64, np.int64]),
                arrays_of.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
            ),
            st.text(max_size=20).filter(lambda text: "\0" not in text).map(np.array),
        ),
        max_size=4,
    )
)
def test_what_is_kept_is_read(tmp_path_factory: pytest.TempPathFactory, kept: dict) -> None:
    saved = saved_of(tmp_path_factory.mktemp("saved") / "out")
    with saved.locked():
        saved.save(3, kept)
        found = saved.load()
        assert found is not None
        done, arrays = found
        assert done == 3
        assert arrays.keys() == kept.keys()
        for name, values in kept.items():
            assert arrays[name].dtype == values.dtype
            np.testing.assert_array_equal(arrays[name], values)
        saved.delete()
    assert not saved.folder.exists()


def test_states_beyond_the_memory_lie_in_a_file(output: Path, tmp_path: Path) -> None:
    keep(output, 1)
    found = saved_of(output).load(Activations(1, tmp_path).empty)
    assert found is not None
    assert isinstance(found[1]["states-0"], np.memmap)
    assert np.array_equal(found[1]["states-0"], STATES["states-0"])


def test_states_of_another_run_are_refused(output: Path) -> None:
    folder = keep(output, 1)
    with pytest.raises(TakenError) as refused:
        saved_of(output, of="b").load()
    assert str(refused.value) == (
        f"{output}: an interrupted run with other inputs or options left its states in "
        ".out.gguf.states; finish that one, or resume=False starts over"
    )
    assert finished_layers(output) == 1
    with saved_of(output, of="b", resume=False).locked() as other:
        assert other.load() is None
        assert os.listdir(folder) == []
        with pytest.raises(TakenError, match=f"^{output}: another run is making this output"):
            saved_of(output).locked().__enter__()
    assert not folder.exists()


@pytest.mark.parametrize("cut", [0, 1, 40, 200, -20, -1])
def test_damaged_states_are_passed_over(output: Path, cut: int) -> None:
    folder = keep(output, 1)
    whole = (folder / "layer-1.npz").read_bytes()
    (folder / "layer-2.npz").write_bytes(whole[:cut])
    found = saved_of(output).load()
    assert found is not None
    assert found[0] == 1
    (folder / "layer-1.npz").write_bytes(whole[:cut])
    assert saved_of(output).load() is None


def test_a_flipped_bit_is_found(output: Path) -> None:
    folder = keep(output, 1)
    whole = bytearray((folder / "layer-1.npz").read_bytes())
    place = bytes(whole).index(STATES["states-0"].tobytes())
    whole[place + 9] ^= 4
    (folder / "layer-1.npz").write_bytes(whole)
    assert saved_of(output).load() is None


def test_one_run_at_a_time(output: Path) -> None:
    with saved_of(output).locked() as first:
        with pytest.raises(TakenError, match=f"^{output}: another run is making this output; wait"):
            saved_of(output).locked().__enter__()
        first.save(1, STATES)
        first.delete()
        # By now another may have begun; what it has is not taken from it.
        os.rmdir(first.folder)
        os.mkdir(first.folder)
    assert first.folder.is_dir()
    with saved_of(output).locked():
        pass
    assert not first.folder.exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("notes.txt", b""),
        ("layer-1.npz", b"PK\3\4 of mine"),
        ("layer-1.npz", b""),
        ("layer-5.npz", b"PK\3\4" + bytes(26) + b"arr_0.npy"),
        ("layer-2.partial", b"of mine"),
    ],
)
def test_what_no_run_wrote_stays(output: Path, name: str, content: bytes) -> None:
    folder = keep(output, 4)
    (folder / name).write_bytes(content)
    for resume in (True, False):
        with pytest.raises(OutputError, match=rf"states: holds '{name}', which no run wrote; move"):
            saved_of(output, resume=resume).locked().__enter__()
    assert saved_of(output, resume=False).load() is None
    assert os.listdir(folder) == [name]
    assert (folder / name).read_bytes() == content
    (folder / name).unlink()
    with saved_of(output).locked():
        pass
    assert not folder.exists()


def test_links_and_folders_in_it_are_no_states(output: Path, tmp_path: Path) -> None:
    target = keep(tmp_path / "other", 3) / "layer-3.npz"
    folder = keep(output)
    (folder / "layer-3.npz").symlink_to(target)
    (folder / "layer-7.npz").mkdir()
    assert saved_of(output, resume=False).load() is None
    assert foreign_state(folder) == "layer-3.npz"
    assert sorted(os.listdir(folder)) == ["layer-3.npz", "layer-7.npz"]
    assert target.exists()


@pytest.mark.parametrize("to", ["folder", "file", "nothing"])
def test_a_link_in_the_place_of_the_folder_is_refused(
    output: Path, tmp_path: Path, to: str
) -> None:
    target = tmp_path / "elsewhere"
    if to == "folder":
        other = keep(tmp_path / "other", 1)
        other.rename(target)
    elif to == "file":
        target.write_bytes(b"mine")
    saved = saved_of(output)
    saved.folder.symlink_to(target)
    with pytest.raises(OutputError, match="states: is a link; remove it"):
        saved.locked().__enter__()
    assert saved.load() is None
    assert finished_layers(output) == 0
    if to == "folder":
        assert os.listdir(target) == ["layer-1.npz"]


def test_links_in_the_folder_are_not_followed(output: Path, tmp_path: Path) -> None:
    target = tmp_path / "mine"
    target.write_bytes(b"mine")
    with saved_of(output).locked() as saved:
        (saved.folder / "layer-1.partial").symlink_to(target)
        with pytest.raises(OutputError, match="is a link; remove it"):
            saved.save(1, STATES)
    assert target.read_bytes() == b"mine"


def test_a_file_in_the_place_of_the_folder_is_refused(output: Path) -> None:
    saved = saved_of(output)
    saved.folder.write_bytes(b"mine")
    with pytest.raises(OutputError, match="states: cannot be written: File exists"):
        saved.locked().__enter__()
    assert saved.folder.read_bytes() == b"mine"


def test_states_that_cannot_be_kept_leave_the_earlier_ones(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    with saved_of(output).locked() as saved:
        saved.save(1, STATES)
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full)
            with pytest.raises(OutputError, match=r"layer-2.npz: the disk is full; free some"):
                saved.save(2, STATES)
        assert os.listdir(saved.folder) == ["layer-1.npz"]
    assert finished_layers(output) == 1
