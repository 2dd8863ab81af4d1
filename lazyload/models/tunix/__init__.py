"""Tunix's own modules, made for a model and filled with its arrays; all that is private to Tunix stands here."""
