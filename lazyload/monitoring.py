"""What a load tells `jax.monitoring`, which Orbax and JAX tell of their own work, too.

Everything is told once a load has succeeded, by the thread that it was called in, with the model's name as `model=`:

| kind | name | value |
|---|---|---|
| event | `/lazyload/hit`, `/lazyload/miss` | the converted checkpoint was there, or was not |
| duration | `/lazyload/<stage>/duration_secs` | seconds of a stage of `LoadReport.seconds`: `open`, `convert`, ... |
| duration | `/lazyload/total/duration_secs` | seconds of all stages |
| scalar | `/lazyload/bytes_read` | bytes of source weights that were read |
| scalar | `/lazyload/bytes_written` | bytes of arrays that were written to the cache |
| scalar | `/lazyload/bytes_restored` | bytes of arrays that were read from the cache, each array once |

Who wants to know registers a listener before the load:

    jax.monitoring.register_event_duration_secs_listener(lambda name, seconds, **_: print(name, seconds))
"""

import sys

from lazyload.report import LoadReport


def tell(report: LoadReport) -> None:
    """Tells the listeners of JAX what a load did; where JAX has not been imported, there are none."""
    if "jax" not in sys.modules:
        return
    from jax import monitoring

    monitoring.record_event(f"/lazyload/{'hit' if report.hit else 'miss'}", model=report.model)
    for stage, seconds in {**report.seconds, "total": report.total_seconds}.items():
        monitoring.record_event_duration_secs(f"/lazyload/{stage}/duration_secs", seconds, model=report.model)
    for name in ("bytes_read", "bytes_written", "bytes_restored"):
        monitoring.record_scalar(f"/lazyload/{name}", getattr(report, name), model=report.model)
