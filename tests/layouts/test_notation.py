"""The notation: what it accepts, and what it says about what it does not."""

import pytest

from lazyload.errors import LayoutError
from lazyload.layouts.notation import Operations, Place, parse_entry, parse_path


def test_a_path_is_text_and_places() -> None:
    path = parse_path("model.layers.{layer}.mlp.{gate_up:gate,up}_proj.{kind:0..}")
    assert path.pieces[:3] == ("model.layers.", Place("layer"), ".mlp.")
    assert path.places[1:] == (Place("gate_up", ("gate", "up")), Place("kind", relative=True))


def test_an_entry_is_roles_axes_and_operations() -> None:
    entry = parse_entry("embed : vocab embed ; scale 8.0 ; offset 1 ; pad vocab 640 ; as float32")
    assert entry.roles == ("embed",)
    assert entry.patterns == ((("vocab",), ("embed",)),)
    assert entry.operations == Operations(8.0, 1.0, ("vocab", 640), "float32")


def test_concatenated_roles_have_a_pattern_each() -> None:
    entry = parse_entry("q | k : (head head_dim | kv_head head_dim) embed")
    assert entry.concatenated == 0
    assert entry.patterns == ((("head", "head_dim"), ("embed",)), (("kv_head", "head_dim"), ("embed",)))


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        ("vocab embed", "expected 'role : axes'"),
        ("q : (head head_dim embed", "'(' without ')'"),
        ("q : head) embed", "')' without axes"),
        ("q : () embed", "')' without axes"),
        ("q : ((head) embed)", "do not nest"),
        ("q : head | embed", "inside parentheses"),
        ("q : head-dim", "cannot read '-dim'"),
        ("q : head head", "an axis stands in it twice"),
        ("q | k : head embed", "2 roles need one dimension"),
        ("q | k : (head | kv_head) (embed | embed)", "2 roles need one dimension"),
        ("q : (head | kv_head)", "there is one role"),
        ("q : head ; double", "cannot read the operation 'double'"),
        ("q : head ; scale 0", "cannot read the operation 'scale 0'"),
        ("q : head ; scale inf", "cannot read the operation 'scale inf'"),
        ("q : head ; scale 2 ; scale 3", "given twice"),
        ("q : head ; pad head many", "cannot read the operation"),
    ],
)
def test_a_malformed_entry_is_quoted(entry: str, complaint: str) -> None:
    with pytest.raises(LayoutError) as error:
        parse_entry(entry)
    assert complaint in str(error.value)
    assert repr(entry) in str(error.value)


@pytest.mark.parametrize("path", ["layers.{layer", "layers.layer}", "{layer}.{layer}", "{a b}.q"])
def test_a_malformed_path_is_quoted(path: str) -> None:
    with pytest.raises(LayoutError, match="path "):
        parse_path(path)
