"""Numbers, shapes and columns as people read them."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime


def size(nbytes: float) -> str:
    """Bytes as people say them, in powers of 1000.

    Example:
        >>> size(16_381_470_720), size(512)
        ('16.4 GB', '512 B')
    """
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= factor:
            return f"{nbytes / factor:.1f} {unit}"
    return f"{nbytes:.0f} B"


def count(number: int) -> str:
    """A number of parameters as people say it.

    Example:
        >>> count(8_190_735_360), count(412_352)
        ('8.19 billion', '412,352')
    """
    for unit, factor in (("trillion", 1e12), ("billion", 1e9), ("million", 1e6)):
        if number >= factor:
            return f"{number / factor:.3g} {unit}"
    return f"{number:,}"


def duration(seconds: float) -> str:
    """Seconds as people say them.

    Example:
        >>> duration(0.0214), duration(4.2), duration(83)
        ('21 ms', '4.2 s', '1 min 23 s')
    """
    if seconds < 0.9995:
        return f"{seconds * 1e3:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def moment(seconds: float) -> str:
    """A point in time, given in seconds since 1970, to the minute."""
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")


def printable(words: str) -> str:
    r"""A text on one line, in which nothing steers a terminal and every character can be written.

    Example:
        >>> print(printable("a\x1b[31m red\nname"))
        a\x1b[31m red\nname
    """
    if words.isprintable():
        return words
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in words)


def shape(sizes: Iterable[int]) -> str:
    """The sizes of an array's dimensions, `4096 x 32 x 128`."""
    return " x ".join(map(str, sizes)) or "scalar"


def mesh(axes: Mapping[str, int]) -> str:
    """A mesh by its axes, `fsdp=4, tp=2`."""
    return ", ".join(f"{name}={count}" for name, count in axes.items())


def ranges(numbers: Sequence[int], most: int = 4) -> str:
    """Rising numbers in short, no more than `most` stretches of them.

    Example:
        >>> ranges([0, 1, 2, 5, 6, 9]), ranges(range(0, 24, 2)), ranges([0, 1, 3, 4, 6, 7, 9, 10, 12])
        ('0-2, 5-6, 9', '0, 2, ..., 22', '0-1, 3-4, 6-7, 9-10, ...')
    """
    steps = {after - before for before, after in itertools.pairwise(numbers)}
    if len(numbers) > 2 and len(steps) == 1 and 1 not in steps:
        return f"{numbers[0]}, {numbers[1]}, ..., {numbers[-1]}" if len(numbers) > 3 else ", ".join(map(str, numbers))
    stretches: list[list[int]] = []
    for number in numbers:
        if stretches and number == stretches[-1][1] + 1:
            stretches[-1][1] = number
        else:
            stretches.append([number, number])
    said = [str(first) if first == last else f"{first}-{last}" for first, last in stretches]
    return ", ".join(said if len(said) <= most else [*said[:most], "..."])


def columns(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> str:
    """Columns as wide as they need to be; one in which no cell says anything is left out.

    Args:
        header: Their titles.
        rows: Their cells.
        right: The titles of those that are aligned to the right.
    """
    said = [column for column in zip(header, *rows, strict=True) if not rows or any(column[1:])]
    padded = [
        [cell.rjust(width) if title in right else cell.ljust(width) for cell in (title, *cells)]
        for title, *cells in said
        for width in [max(map(len, (title, *cells)))]
    ]
    return "\n".join("  ".join(row).rstrip() for row in zip(*padded, strict=True))
