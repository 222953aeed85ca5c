"""Judge differences: damage, a known mistake, another tool's rounding, or no reason to worry."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from weightcast.converters.compare import Key
from weightcast.converters.report.collector import MatrixErrors
from weightcast.converters.verify.content import MatrixCheck
from weightcast.converters.verify.expected import weight_type
from weightcast.converters.verify.match import TensorMatch
from weightcast.converters.verify.mistakes import Mistake, Mistakes
from weightcast.converters.verify.result import MOST_ALIKE, Problem, plain
from weightcast.converters.verify.rows import SOURCE, SYMMETRIC, TRUNCATED
from weightcast.converters.verify.structure import FETCH
from weightcast.quant.feedback import has_feedback
from weightcast.text import count, option, some

# An error that is larger than the type's own by this factor is suspicious.
SUSPICIOUS_RATIO: Final = 1.5
# Builds that fuse multiplications and additions differ in 2 bytes of 10,000 and more; less is
# damage, and so is a handful of bytes of a small tensor.
_DAMAGED_SHARE: Final = 1e-4
_DAMAGED_BYTES: Final = 16
# Of damage, which tensors have it is told for longer than MOST_ALIKE.
_MOST_DAMAGED: Final = 50
_DAMAGE: Final = ("damaged", "unreadable")
_NUMBER: Final = re.compile(r"\d+(\.\d+)?(e[+-]?\d+)?")
# Types that hold what they are made of, or nearly: errors up to this are those of a detour.
_NEARLY_EXACT: Final = ("F32", "F16", "BF16", "Q8_0", "INT8")
_DETOUR: Final = 0.02
_REQUANTIZED: Final = "requantized"
_ROUNDED_TABLE: Final = "F32 of weights that were rounded to bf16 or f16 before"
_BY_GGML: Final = "requantized by ggml's rule instead of carried over"
_LARGE_ERRORS: Final = ("error", "rows")
CONVERT: Final = "convert again from the source"


@dataclass(frozen=True, slots=True)
class _Finding:
    """A problem of one matrix of a tensor; `expert` is its number where there are several."""

    tensor: TensorMatch
    expert: int | None
    mistake: Mistake


@dataclass(frozen=True, slots=True)
class _Noted:
    """A matrix that a note is about."""

    name: str
    made: MatrixErrors


@dataclass(frozen=True)
class Verdicts:
    """Problems, and what else is to be said; matrices by how their bytes came about."""

    problems: list[Problem]
    notes: list[str]
    counts: Counter[str]


def judge(
    tensors: Sequence[TensorMatch],
    checks: Mapping[Key, MatrixCheck],
    mistakes: Mistakes,
    *,
    has_moments: bool = False,
) -> Verdicts:
    """Tell what is wrong with tensors that were compared; `has_moments`: by second moments too."""
    reproduced = _reproduced_types(tensors, checks)
    is_packed = any(tensor.array.packed is not None for tensor in tensors)
    findings: list[_Finding] = []
    notes: dict[str, list[_Noted]] = defaultdict(list)
    counts: Counter[str] = Counter()
    for key, check in checks.items():
        tensor = tensors[key[0]]
        expert = key[1] if len(tensor.views) > 1 else tensor.expert
        found, verdict, note = _judge(
            tensor, key[1], check, reproduced[tensor.array.dtype], mistakes
        )
        if found is not None and found.kind == "rounded" and is_packed and _may_be_rounded(tensor):
            # Packed directories have such tables in bf16; saved as float32, it is one all the same.
            found, verdict, note = None, "rounded", _ROUNDED_TABLE
        counts[verdict] += 1
        if note is not None:
            notes[note].append(_Noted(tensor.name, check.made))
        if found is not None:
            found = found if has_moments else _or_feedback(tensor, found)
            findings.append(_Finding(tensor, expert, found))
    return Verdicts(list(merged(_grouped(findings))), list(_told(notes)), counts)


def _or_feedback(tensor: TensorMatch, mistake: Mistake) -> Mistake:
    """Name another cause of large errors: codes that were chosen with error feedback."""
    made = weight_type(tensor.array)
    if mistake.kind not in _LARGE_ERRORS or made is None or not has_feedback(made):
        return mistake
    given = option("hessian", "FILE")
    return replace(
        mistake, remedy=f"if it was made with a Hessian, give {given}; or else {CONVERT}"
    )


def _reproduced_types(
    tensors: Sequence[TensorMatch], checks: Mapping[Key, MatrixCheck]
) -> dict[str, bool]:
    """By type, whether three quarters are reproduced byte for byte: then all ought to be."""
    explained: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for (number, _), check in checks.items():
        dtype = tensors[number].array.dtype
        total[dtype] += 1
        explained[dtype] += check.is_explained
    return {dtype: 4 * explained[dtype] >= 3 * total[dtype] for dtype in total}


def _may_be_rounded(tensor: TensorMatch) -> bool:
    return tensor.place is not None and tensor.place.role.storage == "float"


_Verdict = tuple[Mistake | None, str, str | None]


def _judge(
    tensor: TensorMatch, number: int, check: MatrixCheck, is_reproduced: bool, mistakes: Mistakes
) -> _Verdict:
    """Judge one matrix: what is wrong, how its bytes came about, what to note."""
    if check.failure is not None:
        return Mistake("unreadable", f"cannot be read: {check.failure}", FETCH), "wrong", None
    if check.is_explained:
        return _explained(tensor, number, check)
    made, expected = check.made.total, check.expected.total
    error, usual = float(made.relative_rms), float(expected.relative_rms)
    ratio = error / usual if usual else math.inf if error else 0.0
    is_few = check.different <= max(_DAMAGED_BYTES, _DAMAGED_SHARE * check.nbytes)
    is_large = not math.isfinite(error) or ratio > SUSPICIOUS_RATIO or bool(check.outliers)
    # Dividing by a factor and multiplying by its inverse differ in some bytes, which is no damage.
    if (is_few or (is_reproduced and not is_large)) and not tensor.is_divided:
        return _damage(check), "damaged", None
    if not is_large:
        what = "made by another rule or importance; the errors are those of the type"
        return None, "similar", what
    found = mistakes.explain(tensor, number, usual)
    if found is not None:
        return found, "wrong", None
    tolerated = tensor.array.dtype.startswith(_NEARLY_EXACT) and error < _DETOUR
    if tolerated and not is_reproduced:
        return None, "requantized", _REQUANTIZED
    if ratio <= SUSPICIOUS_RATIO:
        rows = ", ".join(map(str, check.outliers[:4]))
        what = f"{count(len(check.outliers), 'row')} with errors out of proportion: {rows}"
        return Mistake("rows", what, CONVERT), "wrong", None
    what = f"relative error {error:.3g}, where {tensor.array.dtype} makes {usual:.3g}"
    if is_reproduced and 2 * check.different < check.nbytes:
        return _damage(check, f"; {what}"), "damaged", None
    return Mistake("error", what, CONVERT), "wrong", None


def _damage(check: MatrixCheck, more: str = "") -> Mistake:
    share = f"{count(check.different, 'byte')} of {check.nbytes:,}"
    place = "" if check.first is None else f", the first at byte {check.first} of the file"
    what = f"is damaged: {share} are not what the source makes{place}{more}"
    return Mistake("damaged", what, FETCH)


def _explained(tensor: TensorMatch, number: int, check: MatrixCheck) -> _Verdict:
    """Every byte is what some conversion makes of the source."""
    origins = [name for name in check.origins if name not in (None, SOURCE, SYMMETRIC)]
    dtype = tensor.array.dtype
    if not origins:
        lossy = (
            tensor.place is not None and tensor.place.role.storage == "float32" and dtype != "F32"
        )
        note = f"stored as {dtype}, though runtimes keep it in float32" if lossy else None
        return None, "same", note
    origin = str(origins[0])
    if origin == TRUNCATED:
        what = "was cut to bf16 without rounding, which doubles the error"
        return Mistake("truncated", what, CONVERT), "wrong", None
    if origin == "float32":
        return None, "requantized", _BY_GGML
    if dtype == "F32":
        if tensor.views[number][0].dtype == "F32":
            what = f"was rounded to {origin} on the way, where the source has float32"
            return Mistake("rounded", what, CONVERT), "wrong", None
        return None, "rounded", f"F32 that holds {origin}(int8 x scale), not int8 x scale"
    return None, "rounded", f"made of weights that were rounded to {origin} before"


def _grouped(findings: Sequence[_Finding]) -> Iterator[Problem]:
    """Say the same of several tensors of a layer, or experts of a tensor, once."""
    groups: dict[tuple[object, ...], list[_Finding]] = defaultdict(list)
    for found in findings:
        place = found.tensor.place
        layer = found.tensor.name if place is None else place.layer
        kind = found.mistake.kind
        role = found.tensor.gguf if kind in ("expert order", "damaged", "scaled") else None
        # Experts are scaled by one factor, whatever rounding made of it.
        same = kind if kind == "scaled" and found.expert is not None else found.mistake
        groups[layer, role, same].append(found)
    for group in groups.values():
        yield _problem(sorted(group, key=lambda found: "(" not in found.mistake.what))


def merged(problems: Iterable[Problem]) -> Iterator[Problem]:
    """Say what is wrong with very many tensors, in all layers or experts, once.

    But for numbers they are told the same, those of damage in the same file.
    """
    alike: dict[tuple[object, ...], list[Problem]] = defaultdict(list)
    for number, problem in enumerate(problems):
        own: object = problem.place if problem.mistake in _DAMAGE else None
        if problem.tensor is None:
            own = number
        alike[own, problem.mistake, _NUMBER.sub("", problem.what), problem.remedy].append(problem)
    for same in alike.values():
        is_damage = same[0].mistake in _DAMAGE
        if len(same) <= (_MOST_DAMAGED if is_damage else MOST_ALIKE):
            yield from same
            continue
        tensors = some([(problem.tensor or "").partition(" and ")[0] for problem in same])
        first, n_files = same[0], len({problem.place for problem in same})
        if n_files > 1:
            first = replace(first, place=f"{first.place} and {count(n_files - 1, 'more file')}")
        if any(problem.what != first.what for problem in same):
            first = replace(first, what=f"{first.what} (the first of them)")
        yield replace(first, tensor=tensors)


def _problem(group: Sequence[_Finding]) -> Problem:
    first, mistake = group[0].tensor, group[0].mistake
    names = list(dict.fromkeys(found.tensor.name for found in group))
    experts = sorted(found.expert for found in group if found.expert is not None)
    kind, what = mistake.kind, mistake.what
    if kind == "expert order" and len(group) > 1:
        kind, what = "expert repeated", f"{what} too: one expert is repeated"
    label = plain(names[0])
    if len(names) > 1:
        label += f" and {count(len(names) - 1, 'more tensor')} of the layer"
    elif experts and len(first.views) > 1:
        listed = ", ".join(map(str, experts))
        label += f", expert{'s' if len(experts) > 1 else ''} {listed}"
    return Problem(str(first.array.path), what, label, mistake.remedy, kind)


def _told(notes: Mapping[str, Sequence[_Noted]]) -> Iterator[str]:
    """Say each note once, with the largest errors where they are the point."""
    for note, found in notes.items():
        names = list(dict.fromkeys(noted.name for noted in found))
        numbers = ""
        if note in (_REQUANTIZED, _BY_GGML):
            largest = max(float(noted.made.total.largest) for noted in found)
            error = max(float(noted.made.total.relative_rms) for noted in found)
            numbers = f": off by up to {largest:.3g} (relative error {error:.2g})"
        yield f"{note}{numbers}: {count(len(names), 'tensor')}, for example {plain(names[0])}"
