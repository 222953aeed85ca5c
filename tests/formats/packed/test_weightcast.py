"""Our own layout: docs/layouts.md specifies it, and its bytes are those that we write and read."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors
from hypothesis import given
from hypothesis import strategies as st

from tests.formats.packed.packing import pack_whole, random_groups, values
from weightcast.errors import LayoutError
from weightcast.formats.packed import LAYOUTS
from weightcast.formats.packed.layout import MatrixShape
from weightcast.formats.packed.weightcast import read_metadata
from weightcast.formats.safetensors import Entry, lay_out
from weightcast.quant.groups import Groups
from weightcast.quant.types import GroupType

ROOT = Path(__file__).parents[3]
DOCUMENT = (ROOT / "docs" / "layouts.md").read_text()
WEIGHTCAST = LAYOUTS["weightcast"]
header_metadata = WEIGHTCAST.header_metadata
DESCRIBED = {
    "a": MatrixShape(GroupType(4, 0, symmetric=False), 2, 9),
    "b": MatrixShape(GroupType(8, 32, scale_dtype="F32"), 1, 64),
}


def fences(language: str) -> list[str]:
    return re.findall(rf"(?ms)^```{language}\n(.*?)\n```$", DOCUMENT)


def golden_file() -> bytes:
    """The file that the document spells out."""
    length, data = (bytes.fromhex(re.sub(r"#.*", "", block)) for block in fences("hex"))
    header = fences("json")[0].encode()
    return length + header + b" " * (-len(header) % 8) + data


def golden_weights() -> dict[str, list[list[float]]]:
    rows: dict[tuple[str, str], list[float]] = {}
    for line in fences("text")[0].splitlines():
        name, row, *numbers = line.split()
        rows.setdefault((name, row), []).extend(float(number) for number in numbers)
    return {"a": [rows["a", "0"], rows["a", "1"]], "b": [rows["b", "0"]]}


def write_file(matrices: dict[str, tuple[GroupType, Groups]]) -> bytes:
    entries, data = [], {}
    for name, (group_type, groups) in matrices.items():
        shape = groups.codes.shape
        entries += [
            Entry(name + part.suffix, part.dtype, part.shape)
            for part in WEIGHTCAST.parts(MatrixShape(group_type, *shape))
        ]
        for suffix, array in pack_whole(WEIGHTCAST, groups, group_type).items():
            data[name + suffix] = array.tobytes()
    described = {n: MatrixShape(t, *g.codes.shape) for n, (t, g) in matrices.items()}
    layout = lay_out(entries, header_metadata(described))
    return layout.header + b"".join(data[n] for n in sorted(data, key=layout.offsets.__getitem__))


def test_the_document_s_file_is_what_we_write():
    a = Groups(
        np.array([range(1, 10), [15, 14, 13, 12, 11, 10, 0, 0, 0]], np.uint8),
        np.array([[0.5], [-2]], ml_dtypes.bfloat16),
        np.array([[5], [15]], np.uint8),
    )
    b = Groups(np.array([range(112, 176)], np.uint8), np.array([[0.5, 2]], np.float32), None)
    written = write_file({"a": (DESCRIBED["a"].type, a), "b": (DESCRIBED["b"].type, b)})
    assert written == golden_file()
    assert values(a, DESCRIBED["a"].type).tolist() == golden_weights()["a"]
    assert values(b, DESCRIBED["b"].type).tolist() == golden_weights()["b"]


def test_the_document_s_file_is_what_we_read(tmp_path):
    path = tmp_path / "golden.safetensors"
    path.write_bytes(golden_file())
    with safetensors.safe_open(path, "numpy") as file:
        metadata = file.metadata()
    assert read_metadata(metadata) == DESCRIBED
    tensors = safetensors.deserialize(golden_file())
    dtypes = {"U8": np.dtype(np.uint8), "F32": np.dtype("<f4")}
    dtypes["BF16"] = np.dtype(ml_dtypes.bfloat16)
    for name, said in DESCRIBED.items():
        parts = {
            found.removeprefix(name): np.frombuffer(t["data"], dtypes[t["dtype"]]).reshape(
                t["shape"]
            )
            for found, t in tensors
            if found.startswith(name + ".")
        }
        groups = WEIGHTCAST.unpack(parts, said)
        assert values(groups, said.type).tolist() == golden_weights()[name]


def test_ten_rules_each_with_a_must_or_may():
    rules = re.findall(r"(?ms)^\d+\. (.*?)(?=^\d+\. |^`)", DOCUMENT)
    assert len(rules) == 10
    assert all("MUST" in rule or "MAY" in rule for rule in rules)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("scale_dtype", ["BF16", "F16", "F32"])
def test_the_example_reads_it(bits, symmetric, scale_dtype, tmp_path):
    group_type = GroupType(bits, 0, symmetric, scale_dtype)
    groups = random_groups(group_type, 3, 7)
    path = tmp_path / "model.safetensors"
    path.write_bytes(write_file({"some.matrix": (group_type, groups)}))
    script = ROOT / "examples" / "read_weightcast_int4.py"
    done = subprocess.run([sys.executable, script, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    name, shape, numbers = re.fullmatch(r"(\S+) (\[3, 7\]) (\[.*\])\n", done.stdout).groups()
    assert name == "some.matrix"
    assert shape == "[3, 7]"
    expected = values(groups, group_type).ravel()[:9]
    np.testing.assert_allclose(json.loads(numbers), expected, rtol=0, atol=6e-7)


def test_the_example_reads_the_document_s_file(tmp_path):
    path = tmp_path / "golden.safetensors"
    path.write_bytes(golden_file())
    script = ROOT / "examples" / "read_weightcast_int4.py"
    done = subprocess.run([sys.executable, script, path], capture_output=True, text=True)
    weights = golden_weights()
    assert done.stdout == f"a [2, 9] {weights['a'][0]}\nb [1, 64] {weights['b'][0][:9]}\n"


described = st.builds(
    lambda bits, size, symmetric, dtype, n_out, n_groups: MatrixShape(
        GroupType(bits, size, symmetric, dtype), n_out, (size or 7) * n_groups
    ),
    st.sampled_from([4, 8]),
    st.integers(0, 9).map(lambda n: 32 * n),
    st.booleans(),
    st.sampled_from(["BF16", "F16", "F32"]),
    st.integers(1, 1 << 40),
    st.integers(1, 1 << 20),
)


@given(st.dictionaries(st.text(), described, max_size=5))
def test_metadata_come_back(matrices):
    assert read_metadata(header_metadata(matrices)) == matrices


def test_a_file_without_the_key_has_no_packed_matrices():
    assert read_metadata({"format": "pt"}) == {}


GOOD = {
    "bits": 4,
    "group_size": 32,
    "symmetric": True,
    "scale_dtype": "BF16",
    "shape": [8, 64],
}


def test_keys_that_are_not_known_are_ignored():
    more = {"version": 1, "made_by": "x", "matrices": {"m": GOOD | {"note": [1]}}}
    assert read_metadata({"weightcast": json.dumps(more)}) == {
        "m": MatrixShape(GroupType(4, 32), 8, 64)
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"^the weightcast metadata are not a JSON object with matrices$"),
        ("[" * 100_000, r"^the weightcast metadata are not a JSON object with matrices$"),
        ("[]", r"^the weightcast metadata are not a JSON object with matrices$"),
        ('{"version":1}', r"^the weightcast metadata are not a JSON object with matrices$"),
        ('{"version":2,"matrices":{}}', r"^weightcast layout of version 2, not 1$"),
        ('{"version":1,"matrices":{"m":[]}}', r"metadata of 'm' are not complete: \[\]$"),
        *(
            (
                json.dumps({"version": 1, "matrices": {"m": GOOD | {key: bad}}}),
                r"^the weightcast metadata of 'm' are not complete: \{",
            )
            for key, bad in [
                ("bits", 4.0),
                ("bits", True),
                ("group_size", None),
                ("symmetric", 1),
                ("scale_dtype", []),
                ("shape", [8]),
                ("shape", [8, "64"]),
                ("shape", 64),
            ]
        ),
        *(
            (json.dumps({"version": 1, "matrices": {"m": GOOD | bad}}), message)
            for bad, message in [
                ({"bits": 3}, r"^groups of 3 bits: use 4 or 8$"),
                ({"group_size": 96}, r"^rows of 64 values are not whole groups of 96$"),
                ({"group_size": 48}, r"^group size 48: use a multiple of 32"),
                ({"group_size": -32}, r"^group size -32: use"),
                ({"scale_dtype": "I8"}, r"^scales of I8: use "),
                ({"shape": [0, 64]}, r"^a matrix \[0, 64\] has no weights"),
            ]
        ),
    ],
)
def test_metadata_that_are_wrong_are_refused(text, message):
    with pytest.raises(LayoutError, match=message) as refusal:
        read_metadata({"weightcast": text})
    assert "\n" not in str(refusal.value)


def test_zero_points_beyond_the_codes_are_refused():
    group_type = GroupType(4, 32, symmetric=False)
    parts = pack_whole(WEIGHTCAST, random_groups(group_type, 8, 64), group_type)
    parts[".zero_points"] = parts[".zero_points"] | 16
    with pytest.raises(LayoutError, match=r"^\.zero_points has \d\d with 4 bits$"):
        WEIGHTCAST.unpack(parts, MatrixShape(group_type, 8, 64))


def test_zero_points_of_symmetric_groups_are_refused():
    group_type = GroupType(4, 32)
    parts = pack_whole(WEIGHTCAST, random_groups(group_type, 8, 64), group_type)
    parts[".zero_points"] = np.full((8, 2), 8, np.uint8)
    with pytest.raises(LayoutError, match=r"^symmetric groups have no \.zero_points"):
        WEIGHTCAST.unpack(parts, MatrixShape(group_type, 8, 64))
