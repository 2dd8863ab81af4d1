"""The code blocks of a Markdown page, by the heading that they stand under.

    PYTHONPATH=tests python -m support.snippets README.md Install

prints the shell commands of a section, as they are written. A block that cannot be run is preceded by a comment that
says why, which readers do not see: `<!-- not run: needs a TPU -->`.
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_NOT_RUN = re.compile(r"<!-- not run: (.+) -->")
_COMMAND_OF = {"sh": "", "dockerfile": "RUN ", "yaml": "- run: "}
"""The languages that hold shell commands, and what stands before one on its line."""


@dataclass(frozen=True)
class Block:
    """A code block.

    Attributes:
        page: The page.
        section: The nearest heading above it.
        language: What it is marked as.
        text: What is in it.
        line: The number of its first line in the page, from 1.
        not_run: Why it cannot be run; empty where it can.
    """

    page: Path
    section: str
    language: str
    text: str
    line: int
    not_run: str

    def commands(self) -> list[str]:
        """The shell commands in it, each in one piece, without comments on lines of their own."""
        if self.language not in _COMMAND_OF:
            return []
        start = _COMMAND_OF[self.language]
        lines = self.text.replace("\\\n", "").splitlines()
        return [
            line.strip().removeprefix(start)
            for line in lines
            if line.strip().startswith(start) and not line.startswith("#") and line.strip()
        ]


def blocks(page: Path) -> Iterator[Block]:
    """The code blocks of a page, in order."""
    section, not_run, opened = "", "", None
    lines: list[str] = []
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if opened is None:
            if line.startswith("```"):
                opened, lines = (line.removeprefix("```"), number + 1), []
            elif line.startswith("#"):
                section = line.lstrip("# ")
            elif line.strip():
                reason = _NOT_RUN.fullmatch(line)
                not_run = reason[1] if reason else ""
        elif line == "```":
            yield Block(page, section, opened[0], "\n".join(lines) + "\n", opened[1], not_run)
            opened, not_run = None, ""
        else:
            lines.append(line)


if __name__ == "__main__":
    for block in blocks(Path(sys.argv[1])):
        if block.section == sys.argv[2] and not block.not_run:
            print(*block.commands(), sep="\n")
