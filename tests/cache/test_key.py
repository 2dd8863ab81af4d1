"""Keys: the same for the same fields, another for any change, and able to say what differs."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyload.cache.key import Key

SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=8)
FIELDS = st.dictionaries(
    st.text(min_size=1, max_size=6),
    st.recursive(
        SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_size=5,
)


@given(fields=FIELDS)
def test_order_does_not_matter(fields: dict[str, Any]) -> None:
    reordered = dict(reversed(list(fields.items())))
    assert Key(fields).digest == Key(reordered).digest
    assert Key(fields).differences(Key(json.loads(json.dumps(reordered)))) == []


@given(one=FIELDS, other=FIELDS)
def test_any_change_is_another_key(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert (Key(one).digest == Key(other).digest) == (
        json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    )


def test_differences_are_in_words() -> None:
    here = Key({"storage": {"ocdbt": True, "zarr3": True}, "dtype": "float32", "mapping": "a" * 64})
    there = Key({"storage": {"ocdbt": False, "zarr3": True}, "dtype": "bfloat16", "mapping": "b" * 64})
    assert here.differences(there) == [
        "storage.ocdbt: true instead of false",
        "dtype: float32 instead of bfloat16",
        f"mapping: {'a' * 32}... instead of {'b' * 32}...",
    ]


def test_long_values_are_cut() -> None:
    assert Key({"a": "x" * 48}).differences(Key({"a": 1})) == [f"a: {'x' * 48} instead of 1"]
    assert Key({"a": "x" * 49}).differences(Key({"a": 1})) == [f"a: {'x' * 32}... instead of 1"]


def test_what_json_does_not_have_is_no_key() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        _ = Key({"a": float("nan")}).digest
