"""What pyright says of lazyload: run by pre-commit, `python tests/typing/with_pyright.py`; prints what is wrong.

In strict mode it must reject the lines of `client.py` that mypy rejects, and accept the others; and it must know the
type of everything that a user can reach from the public names (`pyright --verifytypes`).
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
CLIENT = Path(__file__).with_name("client.py")


def main() -> int:
    """The exit code: 1 where something is wrong."""
    problems = [*wrong_lines(), *unknown_types()]
    print(*problems, sep="\n", end="\n" if problems else "")
    return 1 if problems else 0


def wrong_lines() -> list[str]:
    """Lines of the client that should be rejected and are not, or the other way round."""
    lines = CLIENT.read_text().splitlines()
    marked = {number for number, line in enumerate(lines, start=1) if "  # rejected: " in line}
    said: dict[int, str] = {}
    for found in pyright(str(CLIENT))["generalDiagnostics"]:
        said.setdefault(found["range"]["start"]["line"] + 1, found["message"])
    return [
        f"{CLIENT.name}:{number}: {said.get(number, 'is not rejected')}: {lines[number - 1]}"
        for number in sorted(marked ^ said.keys())
    ]


def unknown_types() -> list[str]:
    """Public names, and attributes of public classes, whose type is unknown or only guessed."""
    sys.path.insert(0, str(ROOT))
    import lazyload

    public = [lazyload.errors, *(getattr(lazyload, name) for name in lazyload.__all__ if name != "errors")]
    names = [getattr(value, "__qualname__", None) for value in public]
    modules = [getattr(value, "__module__", value.__name__) for value in public]
    places = {f"{module}.{name}" if name else module for module, name in zip(modules, names, strict=True)}
    places |= {f"lazyload.{name}" for name in lazyload.__all__} | {"lazyload.models"}
    found = []
    for symbol in pyright("--verifytypes", "lazyload", "--ignoreexternal")["typeCompleteness"]["symbols"]:
        name = symbol["name"]
        is_public = any(name == place or name.startswith(f"{place}.") for place in places)
        if is_public and symbol["isExported"] and not (symbol["isTypeKnown"] and not symbol["isTypeAmbiguous"]):
            found += [f"{name}: {diagnostic['message']}" for diagnostic in symbol["diagnostics"]]
    return found


def pyright(*arguments: str) -> dict[str, Any]:
    """What it answers, as JSON; it looks for the installed packages where the first `python` on the path does."""
    environment = os.environ | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(ROOT),
        "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1",
    }
    command = [sys.executable, "-m", "pyright", "--outputjson", *arguments]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    try:
        answer: dict[str, Any] = json.loads(result.stdout[result.stdout.index("{") :])
    except ValueError:
        raise SystemExit(f"pyright failed: {result.stdout}{result.stderr}") from None
    return answer


if __name__ == "__main__":
    sys.exit(main())
