"""What `lazyload/README.md` says of the house is so."""

from pathlib import Path

from support.decoders import FULL_BLOCKS

import lazyload
from lazyload.models.decoder import BLOCKS

HOUSE = Path(lazyload.__file__).with_name("README.md").read_text()


def test_it_lists_every_role() -> None:
    rows = ["| module | parameter | role and axes |", "|---|---|---|"]
    for block in FULL_BLOCKS:
        for path, text in block.parameters.items():
            escaped = text.replace("|", "\\|")
            rows.append(f"| `{block.name}` | `{path}` | `{escaped}` |")
    listed = HOUSE.split("<!-- roles -->\n")[1].split("<!-- end of roles -->")[0]
    assert listed.strip().splitlines() == rows, "\n".join(["write into lazyload/README.md:", *rows])
    assert {type(block) for block in FULL_BLOCKS} == set(BLOCKS)


def test_it_speaks_of_every_room() -> None:
    rooms = [path.name for path in Path(lazyload.__file__).parent.iterdir() if (path / "__init__.py").exists()]
    assert [room for room in rooms if f"`{room}/`" not in HOUSE] == []
