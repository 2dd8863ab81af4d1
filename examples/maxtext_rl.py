"""MaxText's own RL run, whose checkpoint is converted here instead of by MaxText's own converter.

    python examples/maxtext_rl.py                                        # a small Llama with random weights
    python examples/maxtext_rl.py [--model MODEL] model_name=llama3.1-8b-Instruct ...     # MaxText's own settings

The first needs no MaxText: a config's plain fields will do. The second is MaxText's `train_rl` with its settings, to
the end of the training; nothing of it knows of this library. MODEL is a hub id or a folder; without it, `model_name`
says which checkpoint is meant.
"""

import argparse
import pathlib
import tempfile
from collections.abc import Sequence

from orbax.checkpoint import PyTreeCheckpointer
from quickstart import write_small_llama

import lazyload
from lazyload.integrations import maxtext as integration


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("settings", nargs="*", metavar="NAME=VALUE", help="settings of MaxText's configs/post_train/rl")
    parser.add_argument("--model", help="a hub id or a folder")
    arguments = parser.parse_args()
    if arguments.settings:
        train(arguments.settings, arguments.model)
    else:
        with tempfile.TemporaryDirectory() as folder:
            show_conversion(pathlib.Path(folder))


def train(settings: Sequence[str], model: str | None) -> None:
    """Runs `train_rl`: reference and policy come from the cache, the second as a hit."""
    import maxtext
    from maxtext.trainers.post_train.rl import train_rl

    rl = pathlib.Path(maxtext.__file__).parent / "configs" / "post_train" / "rl.yml"
    with integration.install(model=model):
        train_rl.main(["", str(rl), *settings])
    print(lazyload.last_report())


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
        filled = integration.with_checkpoint(config, cache_dir=folder / "cache")
        print(f"{run} run: {lazyload.last_report()}")
    tree = PyTreeCheckpointer().metadata(filled["load_parameters_path"]).item_metadata.tree
    for name, leaf in tree["params"]["params"]["decoder"]["layers"]["self_attention"].items():
        print(f"decoder.layers.self_attention.{name}.kernel  {leaf['kernel'].shape}")


if __name__ == "__main__":
    main()
