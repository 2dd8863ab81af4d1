"""The architecture of decoders: what one is, as frozen values that know neither JAX nor files."""
