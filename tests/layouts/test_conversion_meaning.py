"""Conversions beyond rearrangement: arithmetic, padding, concatenation, aliases; and everything that does not fit."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.in_memory import FLOAT32, SIZES, Arrays, Sizes, slices

from lazyload.errors import LayoutError, TensorMismatchError
from lazyload.layouts import conversion
from lazyload.layouts.axes import Group
from lazyload.layouts.conversion import axes_of, digest, form_of, resolve
from lazyload.layouts.layout import Layout, Table
from lazyload.layouts.notation import DTYPES
from lazyload.layouts.unroll import unroll_tree

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
    for operation in ("scale 2", "offset 1"):
        with pytest.raises(LayoutError, match="t: cannot combine int32"):
            converted(f"embed : vocab embed ; {operation}", EMBEDDING.astype(np.int32))


@pytest.mark.parametrize(
    ("stored", "wanted", "result"),
    [
        ("float32", "bfloat16", "float32"),
        ("float32", "float16", "float32"),
        ("bfloat16", "bfloat16", "bfloat16"),
        ("bfloat16", "float16", "float32"),
        ("float16", "bfloat16", "float32"),
        ("bfloat16", "float32", "float32"),
    ],
)
def test_a_layout_may_keep_values_that_the_dtype_asked_for_cannot_hold(stored: str, wanted: str, result: str) -> None:
    array, dtype = EMBEDDING.astype(DTYPES[stored]), DTYPES[wanted]
    found = converted("embed : vocab embed ; unrounded", array, dtype)
    assert found.dtype == DTYPES[result]
    np.testing.assert_array_equal(found.astype(np.float32), array.astype(np.float32))
    layout = Layout({"t": "embed : vocab embed ; unrounded"})
    assert DTYPES[result].name in form_of(unroll_tree(layout, SIZES), dtype)["t"][1]
    assert converted("embed : vocab embed ; unrounded", EMBEDDING.astype(np.int32), dtype).dtype == np.int32


@pytest.mark.parametrize("other", [np.int32, np.float32])
def test_arrays_of_different_kinds_of_numbers_are_not_combined(other: type) -> None:
    source = Arrays({"0.n": np.zeros(5, np.int8)} | {f"{n}.n": np.zeros(5, other) for n in range(1, 4)})
    with pytest.raises(LayoutError, match=f"n: cannot combine {np.dtype(other)}, int8"):
        resolve(source, Layout({"{layer}.n": "n : embed"}), Layout({"n": "n : layer embed"}), SIZES, FLOAT32)


def test_floating_point_numbers_of_any_width_are_combined() -> None:
    source = Arrays({f"{n}.n": np.full(5, n, BFLOAT16 if n % 2 else np.float32) for n in range(4)})
    stacked = resolve(source, Layout({"{layer}.n": "n : embed"}), Layout({"n": "n : layer embed"}), SIZES, BFLOAT16)
    np.testing.assert_array_equal(stacked.tensors["n"][WHOLE][:, 0], np.arange(4, dtype=BFLOAT16))


@pytest.mark.parametrize("part", ["head_dim", "(big small)", "(small big)"])
def test_an_axis_that_the_two_sides_divide_differently(part: str) -> None:
    values = np.arange(60, dtype=np.float32).reshape(3, 2, 2, 5)
    stored = Layout({"q": "q : head (pair half) embed"})
    table = Table({"t": f"q : embed {part} head"}, split={"head_dim": ("big", "small")}, sizes={"small": 2})
    lazy = resolve(Arrays({"q": values.reshape(3, 4, 5)}), stored, Layout([table]), SIZES, FLOAT32).tensors["t"]
    by_position = values.transpose(0, 2, 1, 3)
    wanted = by_position.transpose(0, 2, 1, 3) if part == "(small big)" else by_position
    np.testing.assert_array_equal(lazy[:, :, :], wanted.reshape(3, 4, 5).transpose(2, 1, 0))


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


TURNS = {
    "apart": Layout({"{layer}.k": "k : (head gate_up) embed", "mlp": "mlp : layer embed head mlp"}),
    "one after the other": Layout({"{layer}": "k | mlp : (head gate_up | head mlp) embed"}),
    "by turns": Layout({"{layer}": "k | mlp : (head (gate_up | mlp)) embed"}),
    "by turns, stacked": Layout({"all": "k | mlp : embed layer (head (gate_up | mlp))"}),
    "at two axes": Layout({"all": "mlp | k : (layer head (mlp | gate_up)) embed"}),
    "in parts of an axis": Layout(
        [
            Table(
                {"{low}": "k | mlp : (high head (gate_up | mlp)) embed"},
                split={"layer": ("high", "low")},
                sizes={"low": 2},
            )
        ]
    ),
}


def by_turns(layout: str) -> dict[str, np.ndarray]:
    """The roles of `TURNS`, in one of its layouts, by plain NumPy."""
    k = np.arange(4 * 3 * 2 * 5, dtype=np.float32).reshape(4, 3, 2, 5)
    mlp = 1000 + np.arange(4 * 3 * 3 * 5, dtype=np.float32).reshape(4, 3, 3, 5)
    both = np.concatenate([k, mlp], axis=2)
    match layout:
        case "apart":
            return {f"{n}.k": k[n].reshape(6, 5) for n in range(4)} | {"mlp": mlp.transpose(0, 3, 1, 2)}
        case "one after the other":
            return {f"{n}": np.concatenate([k[n].reshape(6, 5), mlp[n].reshape(9, 5)]) for n in range(4)}
        case "by turns":
            return {f"{n}": both[n].reshape(15, 5) for n in range(4)}
        case "by turns, stacked":
            return {"all": both.reshape(4, 15, 5).transpose(2, 0, 1)}
        case "at two axes":
            return {"all": np.concatenate([mlp, k], axis=2).reshape(60, 5)}
    return {f"{low}": both[low::2].reshape(30, 5) for low in range(2)}


@pytest.mark.parametrize("source", TURNS)
@pytest.mark.parametrize("target", TURNS)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_roles_that_take_turns(source: str, target: str, data: st.DataObject) -> None:
    expected = by_turns(target)
    found = resolve(Arrays(by_turns(source)), TURNS[source], TURNS[target], SIZES, FLOAT32).tensors
    assert {path: lazy.shape for path, lazy in found.items()} == {path: each.shape for path, each in expected.items()}
    path = data.draw(st.sampled_from(sorted(expected)))
    for index in ((slice(None),) * expected[path].ndim, data.draw(slices(expected[path].shape))):
        np.testing.assert_array_equal(found[path][index], expected[path][index])
        strided = np.full([2 * size for size in expected[path][index].shape], -7, np.float32)
        strided = strided[(slice(None, None, 2),) * strided.ndim]
        found[path].read_into(strided, index)
        np.testing.assert_array_equal(strided, expected[path][index])


def test_a_dimension_in_which_roles_take_turns_is_one_of_the_array() -> None:
    axes = axes_of(unroll_tree(TURNS["by turns, stacked"], SIZES))
    assert axes == {"all": ((5, 4, 15), ("embed", "layer", "head"))}
    stored = "one after the other"
    found = resolve(Arrays(by_turns(stored)), TURNS[stored], TURNS["by turns, stacked"], SIZES, FLOAT32).tensors
    assert found["all"].split_order == (1, 2, 0)


def test_one_turn_is_read_by_itself_and_several_with_what_lies_between() -> None:
    source = Arrays(by_turns("by turns"))
    lazy = resolve(source, TURNS["by turns"], TURNS["apart"], SIZES, FLOAT32).tensors["2.k"]
    np.testing.assert_array_equal(lazy[2:4, :], source.arrays["2"][5:7])
    assert (source.reads, source.bytes_read) == (1, 2 * 5 * 4)
    np.testing.assert_array_equal(lazy[2:6, :], source.arrays["2"][[5, 6, 10, 11]])
    assert (source.reads, source.bytes_read) == (2, (2 + 10) * 5 * 4)


STACKED = {
    "apart": Layout({"{layer}.k": "k : (kv_head head_dim) embed", "v": "v : layer embed kv_head head_dim"}),
    "stacked": Layout({"{layer}": "k | v : (1 | 1) kv_head embed head_dim"}),
    "stacked the other way": Layout({"{layer}": "v | k : kv_head embed head_dim (1 | 1)"}),
    "with the layers": Layout({"all": "k | v : layer (1 | 1) (kv_head head_dim) embed"}),
}


def stacked(layout: str) -> dict[str, np.ndarray]:
    """The roles of `STACKED`, in one of its layouts, by plain NumPy."""
    k, v = np.arange(2 * 4 * 1 * 4 * 5, dtype=np.float32).reshape(2, 4, 1, 4, 5)
    both = np.stack([k, v], axis=1)
    match layout:
        case "apart":
            return {f"{n}.k": k[n].reshape(4, 5) for n in range(4)} | {"v": v.transpose(0, 3, 1, 2)}
        case "stacked":
            return {f"{n}": both[n].transpose(0, 1, 3, 2) for n in range(4)}
        case "stacked the other way":
            return {f"{n}": both[n, ::-1].transpose(1, 3, 2, 0) for n in range(4)}
    return {"all": both.reshape(4, 2, 4, 5)}


@pytest.mark.parametrize("source", STACKED)
@pytest.mark.parametrize("target", STACKED)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_roles_that_are_stacked(source: str, target: str, data: st.DataObject) -> None:
    expected = stacked(target)
    found = resolve(Arrays(stacked(source)), STACKED[source], STACKED[target], SIZES, FLOAT32).tensors
    assert {path: lazy.shape for path, lazy in found.items()} == {path: each.shape for path, each in expected.items()}
    path = data.draw(st.sampled_from(sorted(expected)))
    for index in ((slice(None),) * expected[path].ndim, data.draw(slices(expected[path].shape))):
        np.testing.assert_array_equal(found[path][index], expected[path][index])


def test_a_stack_is_a_dimension_of_no_axis_and_one_role_is_read_by_itself() -> None:
    assert axes_of(unroll_tree(STACKED["stacked"], SIZES))["2"] == ((2, 1, 5, 4), ("1", "kv_head", "embed", "head_dim"))
    source = Arrays(stacked("stacked"))
    lazy = resolve(source, STACKED["stacked"], STACKED["apart"], SIZES, FLOAT32).tensors["2.k"]
    np.testing.assert_array_equal(lazy[:, :], stacked("apart")["2.k"])
    assert (source.reads, source.bytes_read) == (1, 4 * 5 * 4)


def test_stacked_roles_may_call_a_dimension_by_axes_of_their_own_if_these_are_of_one_size() -> None:
    stack = Layout({"gk": "mlp | k : (1 | 1) (mlp | head) (head | gate_up) embed"})
    with pytest.raises(LayoutError, match="'mlp' and 'k' share an array, but are 3 and 2 long in dimension 2"):
        unroll_tree(stack, SIZES)
    alike = Layout({"{layer}": "mlp | mlp2 : (1 | 1) (mlp | head) (head | mlp) embed"})
    a = np.arange(4 * 3 * 3 * 5, dtype=np.float32).reshape(4, 3, 3, 5)
    apart = Layout({"a": "mlp : layer mlp head embed", "b": "mlp2 : layer head mlp embed"})
    lazy = resolve(Arrays({"a": a, "b": a + 1000}), apart, alike, SIZES, FLOAT32).tensors["3"]
    np.testing.assert_array_equal(lazy[:, :, :, :], np.stack([a[3], a[3] + 1000]))


def test_aliases_are_other_prefixes_of_paths() -> None:
    stored = Layout({"model.{n:e,f}": "embed : embed", "e": "x : embed"}, aliases=[("model.", "text."), ("model.", "")])
    target = Layout({"t.{n:e,f}": "embed : embed", "x": "x : embed"})
    names = {"text.e": (5,), "model.f": (5,), "text.f": (5,), "e": (5,)}
    source = Arrays({name: np.zeros(shape, np.float32) for name, shape in names.items()})
    with pytest.raises(TensorMismatchError) as error:
        resolve(source, stored, target, SIZES, FLOAT32)
    assert error.value.problems == ("text.f: in the checkpoint, but layout 'custom' has no use for it",)
    del source.tensors["text.f"]
    tensors = resolve(source, stored, target, SIZES, FLOAT32).tensors
    assert {path: lazy.sources for path, lazy in tensors.items()} == {
        "t.e": ("text.e",), "t.f": ("model.f",), "x": ("e",)}  # fmt: skip
    del source.tensors["text.e"], source.tensors["e"]
    with pytest.raises(TensorMismatchError) as error:
        resolve(source, stored, target, SIZES, FLOAT32)
    assert [problem.split(":")[0] for problem in error.value.problems] == ["model.e", "e"]


def test_an_alias_is_for_paths_with_its_prefix() -> None:
    stored = Layout({"xyz": "embed : vocab embed"}, aliases=[("ab", "")])
    with pytest.raises(TensorMismatchError) as error:
        resolve(Arrays({"z": EMBEDDING}), stored, Layout({"t": "embed : vocab embed"}), SIZES, FLOAT32)
    assert [problem.split(":")[0] for problem in error.value.problems] == ["xyz", "z"]


def test_skipped_tensors_are_those_that_either_layout_says() -> None:
    names = ["vision.patch", "rope.inv_freq", "9.w", "9.mark", "8.w"]
    source = Arrays({"e": EMBEDDING} | {name: EMBEDDING for name in names})
    stored = Layout({"e": "embed : vocab embed"}, skipped=["vision.*", "9.* if 9.mark", "8.* if 8.mark"])
    target = Layout({"t": "embed : vocab embed"}, skipped=["*.inv_freq"])
    with pytest.raises(TensorMismatchError) as error:
        resolve(source, stored, target, SIZES, FLOAT32)
    assert [problem.split(":")[0] for problem in error.value.problems] == ["8.w"]
    del source.tensors["8.w"]
    assert resolve(source, stored, target, SIZES, FLOAT32).skipped == (
        "9.mark", "9.w", "rope.inv_freq", "vision.patch")  # fmt: skip


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
        (
            Layout({"t": "other : vocab"}),
            "wants other, which layout 'custom' does not have for this model; it has embed",
        ),
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


def test_a_source_without_some_layers_or_with_other_axes_is_an_error() -> None:
    groups = [Group((0, 1), SIZES.axes), Group((2, 3), {**SIZES.axes, "embed": 6})]
    sizes = Sizes(SIZES.axes, of_role={"n": groups})
    source = Arrays({f"{n}.n": np.zeros(5, np.float32) for n in range(2)})
    first = Table({"{layer}.n": "n : embed"}, only={"layer": (0, 1)})
    with pytest.raises(LayoutError, match=r"t\.2: the source has no 'n' in these layers"):
        resolve(source, Layout([first]), Layout({"t.{layer}": "n : embed"}), sizes, FLOAT32)
    mixed = Layout([first, Table({"{layer}.n": "n : embed head"}, only={"layer": (2, 3)})])
    with pytest.raises(LayoutError, match=r"role 'n' has other axes at '2\.n' than at '0\.n'"):
        resolve(source, mixed, Layout({"t.{layer}": "n : embed"}), SIZES, FLOAT32)


def test_the_digest_follows_the_tables_and_the_sizes_and_nothing_else() -> None:
    lines = {"t": "embed : vocab embed"}
    target = Layout(lines)
    base = digest(STORED, target, SIZES)
    assert digest(Layout({"e": "embed : vocab embed"}), Layout(Table(lines)), Sizes(dict(SIZES.axes))) == base
    targets = [
        Layout({"t": "embed : embed vocab"}),
        Layout({"t": "embed : vocab embed ; scale 2"}),
        Layout(lines, name="other"),
        Layout(lines, skipped=["x"]),
        Layout(lines, aliases=[("t", "x")]),
        Layout([Table(lines, only={"vocab": range(3)})]),
        Layout([Table(lines, split={"vocab": ("a", "b")})]),
        Layout([Table(lines, sizes={"b": 7})]),
    ]
    models = [
        Sizes({**SIZES.axes, "vocab": 8}),
        Sizes(SIZES.axes, layers={"embed": (0,)}),
        Sizes(SIZES.axes, {"head_dim": ("pair", "half")}),
        Sizes(SIZES.axes, of_role={"embed": []}),
    ]
    others = [digest(STORED, other, SIZES) for other in targets] + [digest(STORED, target, model) for model in models]
    others += [digest(Layout({"f": "embed : vocab embed"}), target, SIZES)]
    other_role = Layout({"e": "embed : vocab embed", "f": "other : vocab"})
    others += [digest(other_role, target, model) for model in (SIZES, Sizes(SIZES.axes, layers={"other": (1,)}))]
    assert len({base, *others}) == 1 + len(others)


def test_the_digest_changes_with_the_meaning_of_the_notation(monkeypatch: pytest.MonkeyPatch) -> None:
    base = digest(STORED, STORED, SIZES)
    monkeypatch.setattr(conversion, "NOTATION_VERSION", 0)
    assert digest(STORED, STORED, SIZES) != base


ALTERNATIVES = Layout(
    {"{layer}.n": "n : embed", "q": "q : embed layer head head_dim"},
    alternatives=[
        Table({"n": "n : layer embed"}),
        Table({"m": "n : layer embed"}),
        Table({"q": "q : layer head embed head_dim"}),
    ],
)


@pytest.mark.parametrize("name", ["{layer}.n", "n", "m"])
@pytest.mark.parametrize("q", ["q : embed layer head head_dim", "q : layer head embed head_dim"])
def test_an_alternative_counts_where_it_fits_names_and_shapes(name: str, q: str) -> None:
    values = np.arange(20, dtype=np.float32).reshape(4, 5)
    target = Layout({"n": "n : layer embed", "q": "q : layer head embed head_dim"})
    roles = {"n": values, "q": np.arange(4 * 5 * 3 * 4, dtype=np.float32).reshape(4, 3, 5, 4)}
    stored = {f"{number}.n": row for number, row in enumerate(values)} if "layer" in name else {name: values}
    stored["q"] = roles["q"] if q.startswith("q : layer") else roles["q"].transpose(2, 0, 1, 3)
    found = resolve(Arrays(stored), ALTERNATIVES, target, SIZES, FLOAT32).tensors
    for role, expected in roles.items():
        np.testing.assert_array_equal(found[role][(slice(None),) * expected.ndim], expected)


def test_what_an_alternative_lacks_is_named_where_it_fits_better_than_the_usual() -> None:
    layout = Layout({"{layer}.n": "n : embed"}, alternatives=[Table({"{layer}.k": "n : embed"})])
    source = Arrays({f"{number}.k": np.zeros(5, np.float32) for number in (0, 1, 3)})
    with pytest.raises(TensorMismatchError, match=r"2\.k: missing") as caught:
        resolve(source, layout, Layout({"n": "n : layer embed"}), SIZES, FLOAT32)
    assert "2.n" not in str(caught.value)
    assert "no use for it" not in str(caught.value)
