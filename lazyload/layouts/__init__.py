"""The notation in which checkpoint formats are described, and the conversions that follow from two descriptions.

A table describes the arrays of a format by named axes, as einops does. Two tables that speak of the same roles make a
conversion. The steps, each in its module:

* `notation`: a line of a table, parsed; `layout`: tables of lines, the description of a format;
* `axes`: what is to be known of a model: its roles and the sizes of their axes;
* `unroll`: all arrays that a layout has for a model, each with the `pattern` of its axes;
* `match`: which source arrays fill a target array; `conversion`: all of them, checked against a checkpoint;
* `lazy`: the tensors of a conversion, read block by block, with `boxes` and `copying`;
* `source`: what is to be known of a checkpoint; `scratch`: memory to read into.

Nothing here knows a format, a file or JAX.

Example:
    One example goes through this folder: the query projections of 2 layers with 4 heads of 8, of 16 columns.
    Hugging Face stores a tensor a layer. MaxText stacks the layers, puts inputs first, and splits a head into pairs of
    its rotary halves.

    >>> from lazyload.layouts.layout import Layout
    >>> hub = Layout({"model.layers.{layer}.self_attn.q_proj.weight": "attn.q : (head head_dim) embed"})
    >>> scanned = Layout({"decoder.layers.self_attention.query.kernel": "attn.q : embed layer head (pair half)"})

    A line, parsed:

    >>> hub.tables[0].parsed[0].patterns
    ((('head', 'head_dim'), ('embed',)),)

    Unrolled for the model:

    >>> from types import SimpleNamespace
    >>> from lazyload.layouts.axes import Group
    >>> from lazyload.layouts.unroll import unroll
    >>> sizes = {"layer": 2, "head": 4, "head_dim": 8, "half": 2, "pair": 4, "embed": 16}
    >>> model = SimpleNamespace(splits={"head_dim": ("half", "pair")}, groups=lambda role: [Group(range(2), sizes)])
    >>> for layout in (hub, scanned):
    ...     for array in unroll(layout, model).values():
    ...         print(array.path, array.shape)
    model.layers.0.self_attn.q_proj.weight (32, 16)
    model.layers.1.self_attn.q_proj.weight (32, 16)
    decoder.layers.self_attention.query.kernel (16, 2, 4, 8)

    Resolved against a checkpoint, here one that says what is read of it:

    >>> import numpy as np
    >>> from lazyload.layouts.conversion import resolve
    >>> from lazyload.layouts.source import TensorInfo
    >>> class Checkpoint:
    ...     tensors = {path: TensorInfo((32, 16), np.dtype(np.float32)) for path in unroll(hub, model)}
    ...     def read(self, name, index):
    ...         print(name, index)
    ...         return np.arange(32 * 16, dtype=np.float32).reshape(32, 16)[index]
    ...     def position(self, name):
    ...         return 0
    >>> conversion = resolve(Checkpoint(), hub, scanned, model, np.dtype(np.float32))
    >>> kernel = conversion.tensors["decoder.layers.self_attention.query.kernel"]
    >>> [(axis.name, axis.size) for axis in kernel.regions[0].contributions[1,].pattern.axes]
    [('head', 4), ('half', 2), ('pair', 4), ('embed', 16)]

    Head 2 of layer 1, read: rows 16 to 24 of one tensor, the bytes 1024 to 1536 of it. The rows of the first column, by
    their multiple of 16, show how the halves interleave.

    >>> head = kernel[0:16, 1:2, 2:3, 0:8]
    model.layers.1.self_attn.q_proj.weight (slice(16, 24, None), slice(0, 16, None))
    >>> [int(value) // 16 for value in head[0, 0, 0]]
    [16, 20, 17, 21, 18, 22, 19, 23]
"""
