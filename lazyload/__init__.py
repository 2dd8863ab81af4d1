"""Load pretrained Hugging Face checkpoints in JAX: converted once, cached, restored straight onto the mesh.

>>> model = lazyload.from_pretrained("Qwen/Qwen3-8B", mesh=mesh)  # doctest: +SKIP

Every function and every `Cache` may be used by several threads at once: the same checkpoint is converted once, and
`last_report` is the thread's own. Three things belong to one thread at a time: a module while it is filled, `register`
before others load what it reads, and the environment, which is read in every call. SIGTERM cleans up after a conversion
of the main thread only; what other threads leave is removed by the next conversion or `lazyload cache prune`.
"""

import importlib
from typing import TYPE_CHECKING, Any

from lazyload import errors
from lazyload.importing import without_collection
from lazyload.log import show_log

show_log()

_LAZY = {
    "BucketPath": "lazyload.bucket.path",
    "Cache": "lazyload.cache.cache",
    "CachedCheckpoint": "lazyload.results",
    "Comparison": "lazyload.explanation",
    "Decoder": "lazyload.models.decoder",
    "DecoderConfig": "lazyload.architecture.decoder",
    "Difference": "lazyload.explanation",
    "Entry": "lazyload.cache.entry",
    "Explanation": "lazyload.explanation",
    "Family": "lazyload.families.family",
    "Layout": "lazyload.layouts.layout",
    "LoadReport": "lazyload.report",
    "Manifest": "lazyload.cache.manifest",
    "MaxText": "lazyload.formats.maxtext",
    "Parameter": "lazyload.results",
    "Plan": "lazyload.results",
    "Progress": "lazyload.progress",
    "Removal": "lazyload.cache.removal",
    "Repair": "lazyload.repairing",
    "Storage": "lazyload.storage",
    "Table": "lazyload.layouts.layout",
    "Target": "lazyload.formats.target",
    "Tokenizer": "lazyload.tokenizing",
    "Tunix": "lazyload.formats.tunix",
    "Verification": "lazyload.verification",
    "config": "lazyload.planning",
    "convert": "lazyload.loader",
    "explain": "lazyload.explanation",
    "export": "lazyload.saving.export",
    "fill": "lazyload.models.fill",
    "from_pretrained": "lazyload.loader",
    "generate": "lazyload.models.generate",
    "last_report": "lazyload.report",
    "plan": "lazyload.planning",
    "register": "lazyload.families",
    "repair": "lazyload.repairing",
    "reshard": "lazyload.models.reshard",
    "save_pretrained": "lazyload.saving.save",
    "show_sharding": "lazyload.shown",
    "tokenizer": "lazyload.tokenizing",
    "verify": "lazyload.verification",
}
"""Where the public names are: imported once they are asked for, so that the command answers at once."""

if TYPE_CHECKING:
    from lazyload.architecture.decoder import DecoderConfig
    from lazyload.bucket.path import BucketPath
    from lazyload.cache.cache import Cache
    from lazyload.cache.entry import Entry
    from lazyload.cache.manifest import Manifest
    from lazyload.cache.removal import Removal
    from lazyload.explanation import Comparison, Difference, Explanation, explain
    from lazyload.families import register
    from lazyload.families.family import Family
    from lazyload.formats.maxtext import MaxText
    from lazyload.formats.target import Target
    from lazyload.formats.tunix import Tunix
    from lazyload.layouts.layout import Layout, Table
    from lazyload.loader import convert, from_pretrained
    from lazyload.models.decoder import Decoder
    from lazyload.models.fill import fill
    from lazyload.models.generate import generate
    from lazyload.models.reshard import reshard
    from lazyload.planning import config, plan
    from lazyload.progress import Progress
    from lazyload.repairing import Repair, repair
    from lazyload.report import LoadReport, last_report
    from lazyload.results import CachedCheckpoint, Parameter, Plan
    from lazyload.saving.export import export
    from lazyload.saving.save import save_pretrained
    from lazyload.shown import show_sharding
    from lazyload.storage import Storage
    from lazyload.tokenizing import Tokenizer, tokenizer
    from lazyload.verification import Verification, verify
else:
    # Out of a type checker's sight: a module with a `__getattr__` has every name to it.
    def __getattr__(name: str) -> Any:
        if name not in _LAZY:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        with without_collection():
            module = importlib.import_module(_LAZY[name])
        value = globals()[name] = getattr(module, name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *_LAZY})


__all__ = [
    "BucketPath",
    "Cache",
    "CachedCheckpoint",
    "Comparison",
    "Decoder",
    "DecoderConfig",
    "Difference",
    "Entry",
    "Explanation",
    "Family",
    "Layout",
    "LoadReport",
    "Manifest",
    "MaxText",
    "Parameter",
    "Plan",
    "Progress",
    "Removal",
    "Repair",
    "Storage",
    "Table",
    "Target",
    "Tokenizer",
    "Tunix",
    "Verification",
    "config",
    "convert",
    "errors",
    "explain",
    "export",
    "fill",
    "from_pretrained",
    "generate",
    "last_report",
    "plan",
    "register",
    "repair",
    "reshard",
    "save_pretrained",
    "show_sharding",
    "tokenizer",
    "verify",
]

__version__ = "0.1.0"
