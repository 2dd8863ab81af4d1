"""The tables of checkpoint formats, side by side."""
