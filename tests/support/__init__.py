"""What the tests share: checkpoints, decoders, a hub, all of them real."""
