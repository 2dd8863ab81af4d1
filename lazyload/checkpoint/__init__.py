"""Orbax checkpoints: written from lazy tensors block by block, read straight onto a mesh, verified."""
