"""Rules as users name them, and arrays that are searched for the least error."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

import weightcast
from tests.quant.families import gaussian
from weightcast.errors import RequestError
from weightcast.quant.search import EFFORTS, GGML, SEARCHES, Search, parse_search
from weightcast.quant.types import TYPES

WEIGHTS = gaussian(np.random.default_rng(40), (2, 5, 256))
IMPORTANCE = np.random.default_rng(41).uniform(0, 2, 256).astype(np.float32)


def test_rules_have_names_and_efforts():
    assert parse_search() == parse_search("ggml") == GGML == Search(0)
    assert parse_search("least-error") == Search(2)
    assert [parse_search("least-error", effort) for effort in EFFORTS] == [
        Search(1),
        Search(2),
        Search(3),
    ]
    assert [str(search) for search in (GGML, Search(3))] == ["ggml", "least-error, effort 3"]
    assert [search.name for search in (GGML, Search(1))] == list(SEARCHES)
    assert GGML.describe() == {"name": "ggml", "effort": None}
    assert Search(1).describe() == {"name": "least-error", "effort": 1}


@pytest.mark.parametrize(
    ("name", "effort", "said"),
    [
        (
            "least_error",
            None,
            "search: 'least_error' is no rule for scales; use ggml or least-error; did you mean",
        ),
        ("best", None, "search: 'best' is no rule for scales; use ggml or least-error"),
        (None, None, "search: None is no rule"),
        (["ggml"], None, "search: ['ggml'] is no rule"),
        ("least-error", 0, "effort: 0 is no effort; use 1, 2 or 3"),
        ("least-error", 4, "effort: 4 is no effort; use 1, 2 or 3"),
        ("least-error", "2", "effort: '2' is no effort; use 1, 2 or 3"),
        ("least-error", True, "effort: True is no effort; use 1, 2 or 3"),
        ("least-error", 2.0, "effort: 2.0 is no effort; use 1, 2 or 3"),
        ("ggml", 2, "effort: of use with search='least-error' only"),
    ],
)
def test_other_rules_are_refused(name, effort, said):
    with pytest.raises(RequestError, match=re.escape(said)):
        parse_search(name, effort)
    with pytest.raises(RequestError, match=re.escape(said)):
        weightcast.quantize(WEIGHTS, "Q4_K", search=name, effort=effort)


@pytest.mark.parametrize("effort", [None, *EFFORTS])
@pytest.mark.parametrize("name", ["Q8_0", "Q4_K", "MXFP4", "int4-g128", "fp8"])
def test_errors_are_no_larger(name, effort):
    for importance in (None, IMPORTANCE):
        by_ggml = weightcast.quantize(WEIGHTS, name, importance)
        found = weightcast.quantize(WEIGHTS, name, importance, search="least-error", effort=effort)
        label = name if name in TYPES else None
        errors = [
            weightcast.measure(WEIGHTS, blocks, label, importance).total()
            for blocks in (by_ggml, found)
        ]
        squares = [
            each.error_squares if importance is None else each.weighted_error_squares
            for each in errors
        ]
        assert squares[1] <= squares[0] * (1 + 1e-6)


def test_tensors_of_torch_give_tensors():
    given = {"search": "least-error", "effort": 1}
    made = weightcast.quantize(torch.from_numpy(WEIGHTS), "Q8_0", IMPORTANCE, **given)
    assert isinstance(made, torch.Tensor)
    assert np.array_equal(made.numpy(), weightcast.quantize(WEIGHTS, "Q8_0", IMPORTANCE, **given))


def test_importance_is_checked_for_types_that_ignore_it_otherwise():
    weightcast.quantize(WEIGHTS, "Q8_0", IMPORTANCE[:7].repeat(37)[:256])
    with pytest.raises(weightcast.LayoutError, match="importance of shape"):
        weightcast.quantize(WEIGHTS, "Q8_0", IMPORTANCE[:7], search="least-error")
