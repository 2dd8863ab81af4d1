"""The Flax NNX decoder that `layout="nnx"` fills, and the configuration that describes it."""
