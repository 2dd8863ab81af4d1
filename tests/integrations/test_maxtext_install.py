"""`lazyload.integrations.maxtext.install()`: MaxText's own function goes through the cache, and is put back."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import checkpoints

import lazyload
from lazyload.errors import IntegrationError
from lazyload.integrations import maxtext as integration
from lazyload.integrations.replacement import Installation, Library

ROOT = Path(__file__).parents[2]
LIBRARY = Library("Orbax", distribution="orbax-checkpoint", versions=("0.0.1", "0.0.2"))
needs_maxtext = [
    pytest.mark.skipif(importlib.util.find_spec("maxtext") is None, reason="MaxText is not installed"),
    pytest.mark.xdist_group("maxtext"),
]


def test_a_library_that_is_not_there_or_not_known_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(IntegrationError, match=r"Orbax [0-9.]+ is installed, .* known are 0.0.1, 0.0.2. Install one"):
        Installation(LIBRARY, {})
    monkeypatch.setattr(integration, "LIBRARY", Library("MaxText", "no-such-thing", ("0.2.5",)))
    with pytest.raises(IntegrationError, match=r"MaxText is not installed: pip install no-such-thing==0.2.5"):
        integration.install()


class TestWithMaxText:
    pytestmark = needs_maxtext

    @pytest.fixture
    def creation(self) -> Any:
        from maxtext.utils import model_creation_utils

        return model_creation_utils

    def test_every_config_goes_through_with_checkpoint_until_undone(
        self, creation: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def from_pretrained(
            config: Any,
            mesh: Any = None,
            devices: Any = None,
            model_mode: Any = None,
            rng_key: Any = None,
            wrap_with_tunix_adapter: bool = False,
            tokenizer_pad_id: Any = None,
            *,
            quant_mode_str: str = "train",
        ) -> Any:
            return config["load_parameters_path"], devices, quant_mode_str

        monkeypatch.setattr(creation, "from_pretrained", from_pretrained)
        config = {"model_name": "tiny", "convert_checkpoint_if_possible": True, "vocab_size": 512}
        folder = checkpoints.make("qwen3", tmp_path)
        with integration.install(model=folder, cache_dir=tmp_path / "cache", progress=False):
            assert creation.from_pretrained is not from_pretrained
            path, *others = creation.from_pretrained(config, devices=5, quant_mode_str="serve")
            assert others == [5, "serve"]
            assert path == str(lazyload.last_report().path)
            assert not lazyload.last_report().hit
            assert creation.from_pretrained(config)[0] == path
            assert lazyload.last_report().hit
        assert creation.from_pretrained is from_pretrained

    def test_another_inside_is_an_error_and_nothing_is_replaced(
        self, creation: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def from_pretrained(config: Any, mesh: Any) -> None:
            """Not as MaxText has it."""

        original = creation.from_pretrained
        with integration.install():
            assert creation.from_pretrained.__wrapped__ is original
        monkeypatch.setattr(creation, "from_pretrained", from_pretrained)
        with pytest.raises(
            IntegrationError, match=r"MaxText looks different inside: .* has parameters config, mesh, not"
        ):
            integration.install()
        assert creation.from_pretrained is from_pretrained

    def test_the_variable_installs_for_a_module_that_is_not_changed(self, tmp_path: Path) -> None:
        (tmp_path / "trainer.py").write_text(
            "import sys\n"
            "from maxtext.utils import model_creation_utils\n"
            "print(__name__, sys.argv[1:], model_creation_utils.from_pretrained.__wrapped__.__module__)\n"
        )
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}", "LAZYLOAD_INSTALL": "maxtext"}
        command = [sys.executable, "-m", "lazyload.integrations.run", "trainer", "x=1"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == "__main__ ['x=1'] maxtext.utils.model_creation_utils"
