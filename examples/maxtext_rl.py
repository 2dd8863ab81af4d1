"""The start of a MaxText RL run, whose checkpoint is converted here instead of by MaxText's own converter.

    python examples/maxtext_rl.py                                         # a small Llama with random weights
    python examples/maxtext_rl.py [--model MODEL] model_name=llama3.1-8b-Instruct ...      # MaxText's own settings

The first needs no MaxText: a config's plain fields will do. The second does what MaxText's `train_rl` does with its
settings, up to the two models, reference and policy, that Tunix trains. MODEL is a hub id or a folder; without it,
`model_name` says which checkpoint is meant.
"""

import argparse
import pathlib
import tempfile
from collections.abc import Sequence

from orbax.checkpoint import PyTreeCheckpointer
from quickstart import write_small_llama

import lazyload
from lazyload.integrations.maxtext import with_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("settings", nargs="*", metavar="NAME=VALUE", help="settings of MaxText's configs/post_train/rl")
    parser.add_argument("--model", help="a hub id or a folder")
    arguments = parser.parse_args()
    if arguments.settings:
        start_run(arguments.settings, arguments.model)
    else:
        with tempfile.TemporaryDirectory() as folder:
            show_conversion(pathlib.Path(folder))


def start_run(settings: Sequence[str], model: str | None) -> None:
    """Creates the models of an RL run; `train_rl` also gives them the padding token of its tokenizer."""
    import maxtext
    import pathwaysutils
    from maxtext.configs import types
    from maxtext.utils import model_creation_utils as creation

    pathwaysutils.initialize()
    rl = pathlib.Path(maxtext.__file__).parent / "configs" / "post_train" / "rl.yml"
    trainer, sampler, *devices = creation.setup_configs_and_devices(
        ["", str(rl), *settings], config_class=types.RLConfig
    )
    trainer = with_checkpoint(trainer, model=model)
    print(lazyload.last_report())
    reference, mesh, policy, *_ = creation.create_models_and_meshes(trainer, sampler, *devices)
    print(f"{type(reference).__name__} and {type(policy).__name__} on {mesh.size} devices")


def show_conversion(folder: pathlib.Path) -> None:
    """Fills in a config's plain fields, twice, and prints what MaxText will restore."""
    config = {
        "model_name": "small-llama",
        "tokenizer_path": str(write_small_llama(folder / "small-llama")),
        "convert_checkpoint_if_possible": True,
        "load_parameters_path": "",
        "scan_layers": True,
        "checkpoint_storage_use_ocdbt": False,  # as in MaxText's rl.yml, for Pathways
        "checkpoint_storage_use_zarr3": False,
        "base_emb_dim": 256,
        "base_num_decoder_layers": 4,
        "vocab_size": 1024,
    }
    for run in ("first", "second"):
        filled = with_checkpoint(config, cache_dir=folder / "cache")
        print(f"{run} run: {lazyload.last_report()}")
    tree = PyTreeCheckpointer().metadata(filled["load_parameters_path"]).item_metadata.tree
    for name, leaf in tree["params"]["params"]["decoder"]["layers"]["self_attention"].items():
        print(f"decoder.layers.self_attention.{name}.kernel  {leaf['kernel'].shape}")


if __name__ == "__main__":
    main()
