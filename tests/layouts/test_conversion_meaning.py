"""Conversions beyond rearrangement: arithmetic, padding, concatenation, aliases; and everything that does not fit."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.in_memory import FLOAT32, SIZES, Arrays, Sizes, slices

from lazyload.errors import LayoutError, TensorMismatchError
from lazyload.layouts.conversion import digest, resolve
from lazyload.layouts.layout import Layout, Table

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
EMBEDDING = np.linspace(-3, 3, 35, dtype=np.float32).reshape(7, 5)
WHOLE = (slice(None), slice(None))
STORED = Layout({"e": "embed : vocab embed"})


def converted(target: str, array: np.ndarray = EMBEDDING, dtype: np.dtype = FLOAT32) -> np.ndarray:
    return resolve(Arrays({"e": array}), STORED, Layout({"t": target}), SIZES, dtype).tensors["t"][WHOLE]


def test_arithmetic_is_done_in_float32_and_rounded_once() -> None:
    stored = EMBEDDING.astype(BFLOAT16)
    result = converted("embed : embed vocab ; scale 0.3 ; offset 1", stored, BFLOAT16)
    expected = (stored.astype(np.float32) * np.float32(0.3) + np.float32(1)).astype(BFLOAT16).T
    np.testing.assert_array_equal(result, expected)


def test_a_layout_may_fix_the_dtype_of_an_array() -> None:
    assert converted("embed : vocab embed ; as float32", EMBEDDING, BFLOAT16).dtype == np.float32


def test_integers_keep_their_dtype() -> None:
    result = converted("embed : embed vocab", EMBEDDING.astype(np.int32), BFLOAT16)
    assert result.dtype == np.int32
    with pytest.raises(LayoutError, match="cannot combine int32"):
        converted("embed : vocab embed ; scale 2", EMBEDDING.astype(np.int32))


@settings(deadline=None)
@given(index=slices((10, 5)))
def test_padding_is_zero_and_is_taken_off_again(index: tuple[slice, ...]) -> None:
    padded = Layout({"e": "embed : vocab embed ; pad vocab 10 ; scale 2"})
    lazy = resolve(Arrays({"e": EMBEDDING}), STORED, padded, SIZES, FLOAT32).tensors["e"]
    expected = np.concatenate([EMBEDDING * 2, np.zeros((3, 5), np.float32)])
    np.testing.assert_array_equal(lazy[index], expected[index])
    back = resolve(Arrays({"e": expected}), padded, STORED, SIZES, FLOAT32).tensors["e"]
    np.testing.assert_array_equal(back[WHOLE], EMBEDDING)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), bias=st.booleans())
def test_concatenations_split_and_join(data: st.DataObject, bias: bool) -> None:
    width = "" if bias else " embed"
    joined = Layout({"qkv.{layer}": f"q | k | v : (head head_dim | kv_head head_dim | kv_head head_dim){width}"})
    apart = Layout(
        {"q.{layer}": f"q :{width} head head_dim", "{layer}.k": f"k : (kv_head head_dim){width}"}
        | {"v": f"v :{width} layer kv_head head_dim"}
    )
    arrays = {
        f"qkv.{n}": np.arange(20 * (1 if bias else 5), dtype=np.float32).reshape((20,) if bias else (20, 5)) + 1000 * n
        for n in range(4)
    }
    split = resolve(Arrays(arrays), joined, apart, SIZES, FLOAT32).tensors
    values = {path: lazy[tuple(slice(None) for _ in lazy.shape)] for path, lazy in split.items()}
    expected = arrays["qkv.2"][:12].reshape((3, 4) if bias else (3, 4, 5))
    np.testing.assert_array_equal(values["q.2"], expected if bias else expected.transpose(2, 0, 1))
    joint = resolve(Arrays(values), apart, joined, SIZES, FLOAT32).tensors["qkv.3"]
    index = data.draw(slices(joint.shape))
    np.testing.assert_array_equal(joint[index], arrays["qkv.3"][index])


def test_aliases_and_skipped_tensors() -> None:
    source = Arrays({"text.model.e": EMBEDDING, "vision.patch": EMBEDDING, "rope.inv_freq": EMBEDDING})
    stored = Layout(
        {"model.e": "embed : vocab embed"}, aliases=[("model.", "text.model.")], skipped=["vision.*", "*.inv_freq"]
    )
    conversion = resolve(source, stored, Layout({"t": "embed : vocab embed"}), SIZES, FLOAT32)
    assert conversion.tensors["t"].sources == ("text.model.e",)
    assert conversion.skipped == ("rope.inv_freq", "vision.patch")


def test_all_problems_are_in_one_message() -> None:
    stored = Layout({"e": "embed : vocab embed", "n.{layer}": "norm : embed"})
    arrays = {
        "e": np.zeros((7, 4), np.float32),
        "n.0": np.zeros(5),
        "n.2": np.zeros(5),
        "n.3": np.zeros(5),
        "extra": np.zeros(1),
    }
    target = Layout({"e": "embed : vocab embed", "n": "norm : layer embed"})
    with pytest.raises(TensorMismatchError) as error:
        resolve(Arrays(arrays), stored, target, SIZES, FLOAT32)
    assert error.value.problems == (
        "e: has shape [7, 4], expected [7, 5]",
        "n.1: missing; expected an array of shape [5]",
        "extra: in the checkpoint, but layout 'custom' has no use for it",
    )


@pytest.mark.parametrize(
    ("target", "complaint"),
    [
        (Layout({"t": "other : vocab"}), "wants other, which layout 'custom' does not have; it has embed"),
        (Layout({"t": "embed : vocab"}), "role 'embed' has axes embed, vocab in the source, but vocab at 't'"),
    ],
)
def test_layouts_that_do_not_fit_are_errors(target: Layout, complaint: str) -> None:
    with pytest.raises(LayoutError) as error:
        resolve(Arrays({"e": EMBEDDING}), STORED, target, SIZES, FLOAT32)
    assert complaint in str(error.value)


def test_a_hole_in_the_source_is_an_error() -> None:
    stored = Layout([Table({"n.{layer}": "norm : embed"}, only={"layer": range(3)})])
    source = Arrays({f"n.{n}": np.zeros(5, np.float32) for n in range(3)})
    with pytest.raises(LayoutError, match="t: the source has no 'norm' for layer 3"):
        resolve(source, stored, Layout({"t": "norm : layer embed"}), SIZES, FLOAT32)


def test_the_digest_follows_the_tables_and_the_sizes_and_nothing_else() -> None:
    target = Layout({"t": "embed : vocab embed"})
    base = digest(STORED, target, SIZES)
    assert digest(Layout({"e": "embed : vocab embed"}), target, Sizes(dict(SIZES.axes))) == base
    others = [
        digest(STORED, Layout({"t": "embed : embed vocab"}), SIZES),
        digest(STORED, Layout({"t": "embed : vocab embed ; scale 2"}), SIZES),
        digest(STORED, target, Sizes({**SIZES.axes, "vocab": 8})),
        digest(STORED, target, Sizes(SIZES.axes, layers={"embed": (0,)})),
    ]
    assert len({base, *others}) == 5
