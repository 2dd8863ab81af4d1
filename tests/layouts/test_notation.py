"""The notation: what it accepts, and what it says about what it does not."""

import ml_dtypes
import numpy as np
import pytest

from lazyload.errors import LayoutError
from lazyload.layouts.layout import Layout, Table
from lazyload.layouts.notation import Operations, PathAxis, parse_line


def test_a_path_is_text_and_axes() -> None:
    line = parse_line("model.layers.{layer}.mlp.{gate_up:gate,up}_proj.{kind:0..}", "mlp.in : mlp")
    axes = (PathAxis("layer"), PathAxis("gate_up", ("gate", "up")), PathAxis("kind", relative=True))
    assert line.path == ("model.layers.", axes[0], ".mlp.", axes[1], "_proj.", axes[2])
    assert line.path_axes == axes


def test_an_array_is_roles_axes_and_operations() -> None:
    line = parse_line("e", "embed : vocab embed ; scale 8.0 ; offset 1 ; pad embed 640 ; as float32")
    assert line.roles == ("embed",)
    assert line.patterns == ((("vocab",), ("embed",)),)
    assert line.concatenated is None
    assert line.operations == Operations(8.0, 1.0, np.dtype(np.float32))
    assert line.padded == (1, 640)


def test_concatenated_roles_have_a_pattern_each() -> None:
    line = parse_line("qk", "q | k : embed (head head_dim | kv_head head_dim)")
    assert line.concatenated == 1
    assert line.patterns == ((("embed",), ("head", "head_dim")), (("embed",), ("kv_head", "head_dim")))


def test_roles_may_take_turns_at_the_indices_of_axes_that_they_share() -> None:
    line = parse_line("qk", "q | k : (kv_head (group head_dim | head_dim)) embed")
    assert (line.concatenated, line.turns) == (0, 1)
    assert line.patterns == ((("kv_head", "group", "head_dim"), ("embed",)), (("kv_head", "head_dim"), ("embed",)))
    assert parse_line("qk", "q | k : (layer kv_head (group | one))").turns == 2
    assert parse_line("qk", "q | k : (kv_head group | kv_head)").turns == 0


def test_roles_may_be_stacked_on_a_dimension_of_their_own() -> None:
    line = parse_line("kv", "k | v : embed (1 | 1) kv_head")
    assert (line.concatenated, line.turns) == (1, 0)
    assert line.patterns == ((("embed",), (), ("kv_head",)),) * 2
    line = parse_line("qkv", "q | k | v : (1 | 1 | 1) (head | kv_head | kv_head) embed")
    assert line.concatenated == 0
    assert line.patterns == (((), ("head",), ("embed",)), *(((), ("kv_head",), ("embed",)),) * 2)


def test_an_array_may_be_a_single_number() -> None:
    assert parse_line("s", "scalar :").patterns == ((),)


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float32"])
def test_dtypes(name: str) -> None:
    dtype = parse_line("q", f"q : head ; as {name}").operations.dtype
    assert dtype == np.dtype(getattr(ml_dtypes, name, name))


@pytest.mark.parametrize(
    ("array", "complaint"),
    [
        ("vocab embed", "expected 'role : axes'"),
        ("q-k : embed", "expected 'role : axes'"),
        ("q : (head head_dim embed", "'(' without ')'"),
        ("q : head) embed", "')' without axes"),
        ("q : () embed", "')' without axes"),
        ("q | k : (head |) embed", "')' without axes"),
        ("q : ((head) embed)", "do not nest"),
        ("q | k : ((head | kv_head) embed)", "do not nest"),
        ("q | k : (embed (head | kv_head) layer)", "do not nest"),
        ("q | k : (embed | layer (head | kv_head))", "do not nest"),
        ("q | k : (layer (embed (head | kv_head)))", "do not nest"),
        ("q : (layer (head embed))", "do not nest"),
        ("q | k : (layer (head | kv_head", "'(' without ')'"),
        ("q | k : (layer (head | kv_head)", "do not nest"),
        ("q | k : (layer (head | ))", "')' without axes"),
        ("q | k : (layer (head | layer))", "axis 'layer' stands in the pattern twice"),
        ("q | k : (layer (head | 3))", "3 is no axis"),
        ("q : (1 | 1) embed", "there is one role"),
        ("q | k : (1 | 1 | 1) embed", "2 roles need one dimension"),
        ("q | k : (1 | 1) (1 | 1) embed", "2 roles need one dimension"),
        ("q | k | v : (1 | 1 | 1) (head | kv_head)", "3 roles need one dimension"),
        ("q | k : (1 | head) embed", "1 is no axis"),
        ("q | k : (1 | 1", "1 is no axis"),
        ("q : (1) embed", "1 is no axis"),
        ("q : head | embed", "inside parentheses"),
        ("q : head-dim", "cannot read '-dim'"),
        ("q : head head", "axis 'head' stands in the pattern twice"),
        ("q | k : (head | kv_head) head", "axis 'head' stands in the pattern twice"),
        ("q | k : head embed", "2 roles need one dimension"),
        ("q | k : (head | kv_head) (embed | embed)", "2 roles need one dimension"),
        ("q | k : (head | kv_head | kv_head)", "2 roles need one dimension"),
        ("q : (head | kv_head)", "there is one role"),
        ("q : head ; double", "cannot read the operation 'double'"),
        ("q : head ;", "cannot read the operation ''"),
        ("q : head ; scale 0", "cannot read the operation 'scale 0'"),
        ("q : head ; scale inf", "cannot read the operation 'scale inf'"),
        ("q : head ; scale two", "cannot read the operation 'scale two'"),
        ("q : head ; offset nan", "cannot read the operation 'offset nan'"),
        ("q : head ; scale 2 ; scale 3", "the operation 'scale' is given twice"),
        ("q : head ; pad head many", "cannot read the operation"),
        ("q : head ; as bf16", "unknown dtype 'bf16'; 'as' knows bfloat16, float16, float32"),
        ("q : head ; as int8", "unknown dtype 'int8'; 'as' knows bfloat16, float16, float32"),
        ("q : head ; unrounded ; unrounded", "the operation 'unrounded' is given twice"),
        ("q : head ; fill 1 ; scale 2", "'fill' and 'scale' or 'offset' exclude each other"),
        ("q : head ; fill one", "cannot read the operation 'fill one'"),
        ("q : head ; unrounded ; as float32", "'as' and 'unrounded' exclude each other"),
        ("q : head ; pad mlp 6", "needs a dimension that is mlp alone"),
        ("q : (head head_dim) ; pad head 6", "needs a dimension that is head alone"),
        ("q | k : embed (head | kv_head) ; pad embed 6", "in an array of one role"),
    ],
)
def test_a_malformed_line_is_quoted(array: str, complaint: str) -> None:
    with pytest.raises(LayoutError) as error:
        parse_line("layers.{layer}", array)
    assert complaint in str(error.value)
    assert f"'layers.{{layer}}': {array!r}" in str(error.value)


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("layers.{layer", "a brace without its partner"),
        ("layers.layer}", "a brace without its partner"),
        ("{a b}.q", "a brace without its partner"),
        ("{layer}.{layer}", "axis 'layer' stands in the path twice"),
        ("{gate_up:gate,}", "an empty name for gate_up"),
        ("{layer:}", "an empty name for layer"),
    ],
)
def test_a_malformed_path_is_quoted(path: str, complaint: str) -> None:
    with pytest.raises(LayoutError) as error:
        parse_line(path, "q : head")
    assert complaint in str(error.value)
    assert repr(path) in str(error.value)


def test_a_table_is_refused_where_it_is_written() -> None:
    with pytest.raises(LayoutError, match="expected 'role : axes'"):
        Table({"q": "head"})


def test_a_layout_is_made_of_lines_a_table_or_several() -> None:
    lines = {"q": "attn.q : head", "qk": "attn.q | attn.k : (head | kv_head)"}
    table = Table(lines)
    assert Layout(lines) == Layout(table) == Layout([table])
    assert Layout([table, table]).tables == (table, table)
    assert Layout(lines).roles == {"attn.q", "attn.k"}
