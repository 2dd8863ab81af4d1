"""Load pretrained Hugging Face checkpoints in JAX: converted once, cached, restored straight onto the mesh.

>>> model = lazyload.from_pretrained("Qwen/Qwen3-8B", mesh=mesh)  # doctest: +SKIP
"""

from lazyload import errors
from lazyload.cache.cache import Cache
from lazyload.families import register
from lazyload.families.family import Family
from lazyload.formats.maxtext import MaxText
from lazyload.formats.target import Target
from lazyload.layouts.layout import Layout, Table
from lazyload.loader import CachedCheckpoint, Plan, convert, from_pretrained, plan
from lazyload.report import LoadReport, last_report
from lazyload.storage import Storage
from lazyload.verification import verify

__all__ = [
    "Cache",
    "CachedCheckpoint",
    "Family",
    "Layout",
    "LoadReport",
    "MaxText",
    "Plan",
    "Storage",
    "Table",
    "Target",
    "convert",
    "errors",
    "from_pretrained",
    "last_report",
    "plan",
    "register",
    "verify",
]

__version__ = "0.1.0"
