"""Adapters, merged into a base model's weights while these are read."""

from lazyload.adapting.matching import found, shape_of, warn_of_other_base
from lazyload.adapting.merged import Merged

__all__ = ["Merged", "found", "shape_of", "warn_of_other_base"]
