"""The mixture of experts in Mixtral's fields, and in DeepSeek's: `n_routed_experts`, `n_shared_experts`, `n_group`."""

from typing import Any

from lazyload.architecture import Experts
from lazyload.config_json.fields import Fields
from lazyload.config_json.shape import activation, num_experts
from lazyload.errors import ConfigError


def experts(fields: Fields, name: str, *aliases: str, **routing: Any) -> Experts:
    """Experts in all layers, as wide as `intermediate_size` says.

    Args:
        fields: The model's `config.json`.
        name: The field that says how many there are.
        aliases: Its other names.
        routing: Further arguments of `Experts`.

    Raises:
        ConfigError: A field is missing, or the numbers do not fit each other.
    """
    return Experts(
        num_experts=num_experts(fields, name, *aliases),
        num_selected=fields.size("num_experts_per_tok"),
        mlp_dim=fields.size("intermediate_size"),
        activation=activation(fields),
        **routing,
    )


def routed_experts(fields: Fields, *, bias: bool = False, grouped: bool = True, **routing: Any) -> Experts:
    """Routed experts, and shared ones that see every token, as one of their width together.

    Args:
        fields: The model's `config.json`.
        bias: Whether the shared experts have biases.
        grouped: Whether a token's experts are of a few groups only.
        routing: Further arguments of `Experts`.

    Raises:
        ConfigError: A field is missing, or the numbers do not fit each other.
    """
    width, shared = fields.size("moe_intermediate_size"), fields.get("n_shared_experts", 0)
    return Experts(
        num_experts=_num_experts(fields),
        num_selected=fields.size("num_experts_per_tok"),
        mlp_dim=width,
        activation=activation(fields),
        shared_mlp_dim=width * shared,
        shared_bias=bias and shared > 0,
        **groups(fields) if grouped else {},
        **routing,
    )


def sigmoid_experts(fields: Fields, *, scale: float) -> Experts:
    """Experts chosen by DeepSeek V3's router: sigmoids, and a bias that counts for the choice only.

    Args:
        fields: The model's `config.json`.
        scale: `routed_scaling_factor` where the file does not say.

    Raises:
        ConfigError: A field is missing, or asks for another router.
    """
    fields.refuse("scoring_func", "sigmoid")
    fields.refuse("topk_method", "noaux_tc")
    return routed_experts(
        fields,
        scores="sigmoid",
        normalize=fields.optional("norm_topk_prob", bool, True) or False,
        scale=fields.get("routed_scaling_factor", scale),
        selection_bias=True,
        group_score="top2",
    )


def groups(fields: Fields) -> dict[str, Any]:
    """The groups of experts and how many of them a token may use, as arguments of `Experts`.

    Raises:
        ConfigError: They do not fit the number of experts, or of those that a token is sent to.
    """
    num_groups, num_selected = fields.size("n_group", 1), fields.size("topk_group", 1)
    count, chosen = _num_experts(fields), fields.size("num_experts_per_tok")
    if count % num_groups or num_selected > num_groups:
        raise ConfigError(
            f"{fields.where}: n_group = {num_groups} does not fit n_routed_experts = {count} "
            f"and topk_group = {num_selected}"
        )
    available = num_selected * count // num_groups
    if chosen > available:
        raise ConfigError(
            f"{fields.where}: num_experts_per_tok = {chosen}, but only {available} experts are in "
            f"topk_group = {num_selected} of n_group = {num_groups} groups"
        )
    return {"num_groups": num_groups, "num_selected_groups": num_selected}


def _num_experts(fields: Fields) -> int:
    return num_experts(fields, "n_routed_experts", "num_experts", "num_local_experts")
