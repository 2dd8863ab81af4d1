"""What a progress function is called with, and what else `progress=` can be."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from lazyload.errors import ArgumentError

Stage = Literal["fetch", "convert", "restore"]
"""What a call is at; see `lazyload.progress`."""

ScreenName = Literal["notebook", "terminal", "lines"]
"""Where progress is shown."""


@dataclass(frozen=True)
class Progress:
    """How far a call is.

    Attributes:
        stage: What it is at: `fetch`, `convert` or `restore`, in this order; what has nothing to do is left out.
        model: The model's name.
        done: Bytes of this stage that are done; 0 when it begins.
        total: Bytes of this stage in all.

    Example:
        >>> def report(progress: lazyload.Progress) -> None:
        ...     print(f"{progress.stage}: {progress.done / progress.total:.0%}")
        >>> report(Progress("restore", "Qwen/Qwen3-8B", 4_100_000_000, 16_400_000_000))
        restore: 25%
    """

    stage: Stage
    model: str
    done: int
    total: int


class Now(NamedTuple):
    """What a call is at.

    Attributes:
        doing: A word for it, such as `converting`.
        since: When that began, by `time.perf_counter`.
        progress: How far it is.
    """

    doing: str
    since: float
    progress: Progress


ProgressOption = bool | Callable[[Progress], Any] | None
"""None: a line on a terminal and in notebooks; True: a line anywhere; False: nothing; or a function, which is called
from any thread, but never from two at once. What it raises ends the call."""


def require_progress(option: object) -> None:
    """Refuses what is no way to show progress.

    Raises:
        ArgumentError: It is none of those that `ProgressOption` lists.
    """
    if option is None or isinstance(option, bool) or (callable(option) and _takes_one_argument(option)):
        return
    raise ArgumentError(
        f"progress={option!r:.100}: give True, False, None, or a function of one argument, a lazyload.Progress"
    )


def _takes_one_argument(function: Callable[..., object]) -> bool:
    try:
        inspect.signature(function).bind(None)
    except TypeError:
        return False
    except ValueError:
        # Some that are written in C do not say what they take.
        return True
    return True
