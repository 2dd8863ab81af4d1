"""The way back: a model's arrays as the checkpoint that the hub would hold.

The layouts that convert a checkpoint are read backwards. Nothing is gathered: a block of a tensor at a time is read
from where its arrays lie, and written to its place in a file of safetensors.
"""
