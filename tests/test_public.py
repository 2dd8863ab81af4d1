"""The public names: all are there, and importing the package brings in nothing heavy."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import lazyload

HEAVY = ("jax", "flax", "orbax", "tensorstore", "huggingface_hub", "fsspec", "rich", "tqdm", "click", "IPython")


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = f"import lazyload, sys; print([name for name in {HEAVY} if name in sys.modules])"
    environment = os.environ | {"PYTHONPATH": str(Path(lazyload.__file__).parents[1])}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_names_that_need_flax_are_found_like_the_others() -> None:
    from lazyload import Decoder, fill

    assert lazyload.Decoder is Decoder
    assert Decoder.__module__ == "lazyload.models.decoder"
    assert fill.__module__ == "lazyload.models.fill"
    assert set(lazyload.__all__) <= set(dir(lazyload))
    with pytest.raises(AttributeError, match="no attribute 'typo'"):
        lazyload.typo  # noqa: B018
