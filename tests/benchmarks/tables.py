"""What was found, as text, as Markdown, and as JSON."""

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from lazyload.display import text
from tests.benchmarks.bars import Verdict, judge
from tests.benchmarks.experiments import Outcome, Row
from tests.benchmarks.machine import Machine
from tests.benchmarks.measure import Sample

_HEADER = ("row", "by", "seconds", "least", "process", "cpu", "x the base", "above", "read", "GB/s", "besides")
_RIGHT = _HEADER[2:-1]
_MET = {True: "met", False: "NOT met", None: "not measured"}


def verdicts(outcome: Outcome) -> list[Verdict]:
    """Every bar of an experiment."""
    return [judge(bar, outcome.samples, outcome.missing) for bar in outcome.experiment.bars]


def as_text(outcome: Outcome) -> str:
    """An experiment as a terminal shows it."""
    parts = [outcome.experiment.title, text.columns(_HEADER, list(_cells(outcome)), _RIGHT)]
    parts += [f"  not measured: {name}: {why}" for name, why in outcome.missing.items()]
    parts += [f"  {said}: {number}, bar {limit}: {met}" for said, number, limit, met in _bars(verdicts(outcome))]
    return "\n".join(parts)


def as_markdown(outcomes: Sequence[Outcome], machine: Machine) -> str:
    """All of it as tables, the bars first."""
    found = [(outcome, verdict) for outcome in outcomes for verdict in verdicts(outcome)]
    bars = [
        (outcome.experiment.title, *cells)
        for (outcome, _), cells in zip(found, _bars([verdict for _, verdict in found]), strict=True)
    ]
    parts = [f"{machine}", _table(("experiment", "bar", "measured", "limit", ""), bars)]
    for outcome in outcomes:
        header, *rows = _without_empty([_HEADER, *_cells(outcome)])
        parts += [f"### {outcome.experiment.title[0].upper()}{outcome.experiment.title[1:]}", _table(header, rows)]
        if outcome.missing:
            parts.append("\n".join(f"* Not measured: {name}: {why}" for name, why in outcome.missing.items()))
    return "\n\n".join(parts) + "\n"


def between_marks(page: str, tables: str) -> str:
    """A page whose part between the marks is replaced; without marks, the tables alone."""
    start, end = "<!-- figures -->\n", "<!-- end of figures -->"
    if start not in page or end not in page:
        return tables
    return f"{page.partition(start)[0]}{start}{tables}{end}{page.partition(end)[2]}"


def as_json(outcomes: Sequence[Outcome], machine: Machine, settings: Mapping[str, Any]) -> dict[str, Any]:
    """All of it with every sample."""
    return {
        "machine": machine.fields(),
        "settings": settings,
        "experiments": [
            {
                "title": outcome.experiment.title,
                "base": outcome.experiment.base,
                "rows": [_row_fields(row, outcome) for row in outcome.experiment.rows],
                "bars": [_bar_fields(verdict) for verdict in verdicts(outcome)],
            }
            for outcome in outcomes
        ],
    }


def _cells(outcome: Outcome) -> Iterator[tuple[str, ...]]:
    base = outcome.samples.get(outcome.experiment.base)
    for row in outcome.experiment.rows:
        samples = outcome.samples.get(row.name)
        if not samples:
            continue
        seconds = statistics.median(sample.seconds for sample in samples)
        yield (
            row.title,
            row.by,
            _seconds(seconds),
            _seconds(min(sample.seconds for sample in samples)),
            _seconds(_median(sample.process_seconds for sample in samples)),
            _seconds(_median(sample.cpu for sample in samples)),
            "" if not base else "the base" if samples is base else _ratios(samples, base),
            _memory(row, samples),
            _amount(_median(sample.bytes_read for sample in samples)),
            f"{row.nbytes / seconds / 1e9:.2f}" if row.nbytes else "",
            _besides(samples, base),
        )


def _ratios(samples: Sequence[Sample], base: Sequence[Sample]) -> str:
    """The median of the ratios within a round, and between what they lie."""
    ratios = [sample.seconds / other.seconds for sample, other in zip(samples, base, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def _besides(samples: Sequence[Sample], base: Sequence[Sample] | None) -> str:
    """The medians of what a row tells besides, and as ratios to the base, where that is not zero."""
    parts = []
    for name in samples[0].figures:
        value = statistics.median(sample.figures[name] for sample in samples)
        part = f"{name}: {value:.3g}"
        of = statistics.median(sample.figures.get(name, 0) for sample in base) if base and samples is not base else 0
        parts.append(f"{part} ({value / of:.2f}x)" if of else part)
    return "; ".join(parts)


def _memory(row: Row, samples: Sequence[Sample]) -> str:
    """The highest peak above rest; of a command, which has no rest, and of a first call, with its imports."""
    peaks = [sample.peak for sample in samples if sample.peak is not None]
    return text.size(max(0, max(peaks) - row.held)) if peaks else ""


def _bars(found: Iterable[Verdict]) -> Iterator[tuple[str, str, str, str]]:
    """Title, number, limit, and whether it is met."""
    for verdict in found:
        bar = verdict.bar
        limit = f"{'>=' if bar.at_least else '<='} {bar.limit:g}{_unit(bar.unit)}"
        if verdict.is_met is None:
            yield bar.title, verdict.why, limit, _MET[None]
            continue
        low, high = min(verdict.values), max(verdict.values)
        number = f"{verdict.value:.3g}{_unit(bar.unit)} ({low:.3g} to {high:.3g})"
        yield bar.title, number, limit, _MET[verdict.is_met]


def _unit(unit: str) -> str:
    return "" if unit == "x" else f" {unit}"


def _row_fields(row: Row, outcome: Outcome) -> dict[str, Any]:
    return {
        "name": row.name,
        "title": row.title,
        "by": row.by,
        "nbytes": row.nbytes,
        "files": row.files,
        "held": row.held,
        "missing": outcome.missing.get(row.name),
        "samples": [sample.fields() for sample in outcome.samples.get(row.name, ())],
    }


def _bar_fields(verdict: Verdict) -> dict[str, Any]:
    bar = verdict.bar
    return {
        "title": bar.title,
        "limit": bar.limit,
        "unit": bar.unit,
        "at_least": bar.at_least,
        "values": list(verdict.values),
        "value": verdict.value if verdict.values else None,
        "met": verdict.is_met,
        "why": verdict.why,
    }


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _without_empty(rows: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """Rows without the columns in which none but the header says anything."""
    columns = [column for column in zip(*rows, strict=True) if len(rows) == 1 or any(column[1:])]
    return list(zip(*columns, strict=True))


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _seconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.3f}" if seconds < 9.995 else f"{seconds:.1f}"


def _amount(nbytes: float | None) -> str:
    return "" if nbytes is None else text.size(nbytes)
