"""The text model's fields in the `config.json` of a multimodal model."""

from collections.abc import Mapping, Sequence
from typing import Any

from lazyload.config_json.fields import Fields


def text_fields(values: Mapping[str, Any], *, towers: Sequence[str] = (), **defaults: Any) -> Fields:
    """The text model's fields, below `text_config`; the output projection is tied as the whole file says, if it does.

    Args:
        values: The parsed `config.json`.
        towers: Fields that describe how images and the like become embeddings, beside `vision_config`: a text model's
            weights and output do not depend on them.
        defaults: What fields of the text model are that the file does not have.

    Raises:
        ConfigError: There is no `text_config`, or there are fields that are not known.
    """
    whole = Fields(values)
    text = whole.need("text_config", dict)
    whole.ignore("vision_config", *towers)
    tied = "tie_word_embeddings"
    # In a multimodal file, null is none.
    outer = {tied: whole.get(tied, False)} if tied in values else {}
    whole.finish()
    return Fields({**text, **outer}, where="config.json: text_config", **defaults)
