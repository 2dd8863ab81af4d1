"""What `lazyload/README.md` says of the house is so."""

from pathlib import Path

from support import readme_tables
from support.decoders import FULL_BLOCKS

import lazyload
from lazyload.models.layer import BLOCKS

HOUSE = Path(lazyload.__file__).with_name("README.md").read_text()


def test_it_lists_every_role() -> None:
    assert readme_tables.written("roles") == readme_tables.roles(), "PYTHONPATH=tests python -m support.readme_tables"
    assert {type(block) for block in FULL_BLOCKS} == set(BLOCKS)


def test_it_speaks_of_every_room() -> None:
    rooms = [path.name for path in Path(lazyload.__file__).parent.iterdir() if (path / "__init__.py").exists()]
    assert [room for room in rooms if f"`{room}/`" not in HOUSE] == []
