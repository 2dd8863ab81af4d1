"""Fields by which the layers of one model differ: sizes, whose keys and values they attend to, inputs of their own."""

from collections.abc import Mapping, Sequence

from lazyload.architecture import Activation, PerLayerEmbedding, PerLayerInput
from lazyload.config_json.fields import Fields
from lazyload.config_json.shape import norm
from lazyload.errors import ConfigError


def sizes_by_kind(
    fields: Fields, kinds: Sequence[str], names: Sequence[str], default: Mapping[str, Mapping[str, int]]
) -> dict[str, tuple[int, ...]]:
    """Sizes that are the same in all layers of a kind, by the kinds that there are.

    What transformers 5.24 saves has `per_layer_config`, with fields by the layers' numbers (`"07"`) in place of the
    model's own; see its `integrations/heterogeneity/configuration_utils.py`.

    Args:
        fields: The model's `config.json`.
        kinds: The kind of each layer.
        names: The fields.
        default: Where the file has no `per_layer_config`, fields in place of the model's own, by kind.

    Raises:
        ConfigError: A size is missing, or layers of one kind differ, or differ in other fields.
    """
    usual = {name: fields.size(name) for name in names}
    by_kind = {str(number): dict(default[kind]) for number, kind in enumerate(kinds) if kind in default}
    given = fields.optional("per_layer_config", dict, by_kind) or {}
    where = f"{fields.where}: per_layer_config"
    layers = Fields({number.lstrip("0") or "0": differing for number, differing in given.items()}, where=where)
    sizes: dict[str, tuple[int, ...]] = {}
    for number, kind in enumerate(kinds):
        layer = Fields(layers.optional(str(number), dict) or {}, where=f"{where}: {number}", **usual)
        own = tuple(layer.size(name) for name in names)
        layer.finish()
        if sizes.setdefault(kind, own) != own:
            raise ConfigError(
                f"{layer.where}: {', '.join(names)} = {own} is not implemented: earlier layers with {kind} have "
                f"{sizes[kind]}"
            )
    layers.finish()
    return sizes


def layer_by_layer(fields: Fields, name: str, num_layers: int) -> Fields:
    """The values of a field that has one for each layer, by the layers' numbers (`"7"`).

    Args:
        fields: The model's `config.json`.
        name: The field.
        num_layers: The number of layers.

    Raises:
        ConfigError: It is missing, no list, or has another length.
    """
    values = fields.need(name, list)
    if len(values) != num_layers:
        raise ConfigError(f"{fields.where}: {name} has {len(values)} values for {num_layers} layers")
    return Fields({str(number): value for number, value in enumerate(values)}, where=f"{fields.where}: {name}")


def kv_layers(fields: Fields, kinds: Sequence[str]) -> list[int | None]:
    """For each layer, the one whose keys and values it attends to; None for its own.

    The last `num_kv_shared_layers` attend to those of the last layer of their kind before them.

    Args:
        fields: The model's `config.json`.
        kinds: The kind of each layer.

    Raises:
        ConfigError: There is no such layer.
    """
    shared = fields.get("num_kv_shared_layers", 0)
    own = kinds[: max(len(kinds) - shared, 0)]
    if shared < 0 or set(own) != set(kinds):
        raise ConfigError(
            f"{fields.where}: num_kv_shared_layers = {shared} of {len(kinds)} layers: keys and values of each kind of "
            f"layer, {' and '.join(sorted(set(kinds)))}, must be made in one of the others"
        )
    sources = {kind: number for number, kind in enumerate(own)}
    return [None] * len(own) + [sources[kind] for kind in kinds[len(own) :]]


def per_layer_inputs(
    fields: Fields, num_layers: int, activation: Activation
) -> tuple[PerLayerEmbedding | None, PerLayerInput | None]:
    """Where the layers' own inputs come from, and what each layer makes of its one; None twice for none.

    Args:
        fields: The model's `config.json`.
        num_layers: The number of layers.
        activation: Of the inputs' gates.

    Raises:
        ConfigError: A size is not positive.
    """
    if not fields.get("hidden_size_per_layer_input", 0):
        fields.ignore("vocab_size_per_layer_input")
        return None, None
    dim, rows = fields.size("hidden_size_per_layer_input"), fields.size("vocab_size_per_layer_input")
    return (
        PerLayerEmbedding(vocab_size=rows, num_layers=num_layers, dim=dim, norm=norm(fields)),
        PerLayerInput(dim=dim, activation=activation, norm=norm(fields)),
    )
