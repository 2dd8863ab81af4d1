"""Types: a type checker accepts what users write, and rejects mistakes line by line."""

import os
import re
import subprocess
import sys
from pathlib import Path

CLIENT = Path(__file__).with_name("client.py")
ROOT = CLIENT.parents[2]


def test_a_type_checker_rejects_mistakes_and_nothing_else() -> None:
    marked = {
        (number, match[1])
        for number, line in enumerate(CLIENT.read_text().splitlines(), start=1)
        if (match := re.search(r"# rejected: ([\w-]+)$", line))
    }
    command = [sys.executable, "-m", "mypy", "--config-file", ROOT / "pyproject.toml", CLIENT]
    environment = os.environ | {"MYPYPATH": str(ROOT)}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    errors = re.findall(
        rf"^{re.escape(str(CLIENT.relative_to(ROOT)))}:(\d+): error: .*\[([\w-]+)\]$", result.stdout, re.M
    )
    assert {(int(number), code) for number, code in errors} == marked, result.stdout + result.stderr
    assert len(marked) > 20
