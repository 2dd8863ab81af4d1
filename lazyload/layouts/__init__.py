"""The notation in which checkpoint formats are described, and the conversions that follow from two descriptions.

* `notation`: one table entry, parsed;
* `layout`: tables of entries, the description of a format;
* `conversion`: two layouts resolved against a checkpoint's tensors;
* `lazy`: the tensors of a conversion, read block by block.
"""
