"""Where parameters go: default rules, the user's, axes that do not divide, and meshes that cannot be used."""

import ast
import logging
import re

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from lazyload.errors import ShardingError
from lazyload.sharding import mesh_or_default, shardings

P = PartitionSpec
ARRAYS = {
    "embed": ((512, 64), ("vocab", "embed")),
    "q": ((64, 4, 16), ("embed", "head", "head_dim")),
    "k": ((64, 1, 16), ("embed", "kv_head", "head_dim")),
    "up": ((64, 96), ("embed", "mlp")),
    "experts": ((8, 64, 48), ("expert", "embed", "expert_mlp")),
    "norm": ((64,), ("embed",)),
}


def specs(mesh: Mesh, rules: object = None) -> dict[str, PartitionSpec]:
    return {path: place.spec for path, place in shardings(mesh, rules, ARRAYS).items()}


def mesh(**sizes: int) -> Mesh:
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), devices=jax.devices()[: np.prod(list(sizes.values()))])


@pytest.mark.parametrize("tensor", ["tp", "tensor", "model", "mp", "mdl"])
def test_the_usual_names(tensor: str) -> None:
    found = specs(mesh(fsdp=4, **{tensor: 2}))
    assert found["embed"] == P(tensor, "fsdp")
    assert found["q"] == P("fsdp", tensor)
    assert found["up"] == P("fsdp", tensor)
    assert found["norm"] == P()


@pytest.mark.parametrize("data", ["data", "dp", "batch"])
def test_over_data_where_nothing_else_shards(data: str) -> None:
    assert specs(mesh(**{data: 4}, mp=2))["up"] == P(data, "mp")
    assert specs(mesh(**{data: 4}, fsdp=2))["up"] == P("fsdp")


def test_axes_are_known_by_what_their_names_end_in() -> None:
    table = {"table": ((512, 48), ("ple_vocab", "ple_embed"))}
    assert shardings(mesh(fsdp=4, tp=2), None, table)["table"].spec == P("tp", "fsdp")
    assert shardings(mesh(data=8), None, table)["table"].spec == P(None, "data")


@pytest.mark.parametrize("expert", ["ep", "expert", "experts"])
def test_experts_have_an_axis_of_their_own(expert: str) -> None:
    assert specs(mesh(fsdp=2, **{expert: 2}, tp=2))["experts"] == P(expert, "fsdp", "tp")


@pytest.mark.parametrize("sizes", [{"x": 2, "y": 4}, {"devices": 8}])
def test_a_mesh_that_shards_nothing_is_told_with_the_rules_that_would(
    sizes: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    odd = mesh(**sizes)
    assert set(specs(odd).values()) == {P()}
    (record,) = caplog.records
    assert str(sizes) in record.getMessage()
    rules = ast.literal_eval(re.search(r"rules=({'.*})", record.getMessage())[1])
    caplog.clear()
    found = specs(odd, rules)
    assert found["up"] == (P("y", "x") if "y" in sizes else P("devices"))
    assert not caplog.records


def test_replicas_that_are_meant_are_not_told(caplog: pytest.LogCaptureFixture) -> None:
    assert set(specs(mesh(stage=2), {}).values()) == {P()}
    assert set(specs(mesh(stage=1)).values()) == {P()}
    assert set(specs(mesh(fsdp=2), {"embed": None}).values()) == {P()}
    assert not caplog.records


@pytest.mark.parametrize("rules", ["fsdp", 7, [("embed",)], [("embed", 3)], {"embed": 3}, {7: "fsdp"}, ["fsdp"]])
def test_rules_that_are_none_say_what_they_could_be(rules: object) -> None:
    with pytest.raises(ShardingError, match="give mesh axes by logical axis"):
        specs(mesh(fsdp=4), rules)


def test_a_rule_that_names_an_axis_twice() -> None:
    with pytest.raises(ShardingError, match=r"'embed' .* names a mesh axis twice"):
        specs(mesh(fsdp=4), {"embed": ("fsdp", "fsdp")})


def test_what_does_not_divide_is_replicated_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "lazyload"):
        assert specs(mesh(fsdp=4, tp=2))["k"] == P("fsdp")
    assert "axis kv_head of size 1 is not divided" in caplog.text
    assert "replicated in k" in caplog.text


def test_rules_add_to_the_defaults_and_replace_them() -> None:
    two = mesh(fsdp=4, tp=2)
    assert specs(two, {"embed": None})["up"] == P(None, "tp")
    assert specs(two, {"mlp": ("fsdp", "tp"), "embed": None})["up"] == P(None, ("fsdp", "tp"))
    assert specs(two, [("mlp", "fsdp"), ("embed", "tp")])["up"] == P("tp", "fsdp")
    assert specs(two, {"embed": "tp"})["norm"] == P("tp"), "what a user says holds for vectors, too"


def test_no_mesh_axis_is_used_twice_in_an_array() -> None:
    assert specs(mesh(fsdp=4, tp=2), {"mlp": "fsdp"})["up"] == P("fsdp")


@pytest.mark.parametrize(("rules", "complaint"), [({"embed": "nope"}, "fsdp, tp"), ({"width": "tp"}, "kv_head")])
def test_rules_that_name_what_is_not_there(rules: dict[str, str], complaint: str) -> None:
    with pytest.raises(ShardingError, match=complaint):
        specs(mesh(fsdp=4, tp=2), rules)


def test_without_a_mesh_all_devices_are_one_axis() -> None:
    found = mesh_or_default(None)
    assert found.axis_names == ("fsdp",)
    assert found.size == len(jax.devices())
    two = mesh(fsdp=2)
    with jax.set_mesh(two):
        assert mesh_or_default(None) == two
        assert mesh_or_default(found) == found


@pytest.mark.parametrize(
    "unusable",
    [Mesh(np.empty((0,), object), ("fsdp",)), AbstractMesh((2,), ("fsdp",)), "fsdp=4", 8],
    ids=["empty", "abstract", "text", "number"],
)
def test_a_mesh_without_devices_is_refused(unusable: object) -> None:
    with pytest.raises(ShardingError, match="devices"):
        mesh_or_default(unusable)
