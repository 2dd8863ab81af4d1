"""The cache of converted checkpoints: keys, entries and their manifests, the lock, and what removes entries again."""
