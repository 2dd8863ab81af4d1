"""Memory that a thread uses again and again.

Fresh memory is slow to touch, and what many threads free is not soon given back to the system: the allocator keeps
pieces apart for each of them. In the worked example of this folder, a thread that reads head after head reads each
8 x 16 box into the same memory.
"""

import math
import threading
from collections.abc import Sequence

import numpy as np


class Scratch(threading.local):
    """Memory for one array at a time, a different one in every thread.

    Example:
        >>> scratch = Scratch()
        >>> first, second = scratch.array((2, 3), np.dtype(np.float32)), scratch.array((3,), np.dtype(np.int8))
        >>> np.may_share_memory(first, second)
        True
    """

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8)

    def array(self, shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
        """An array with arbitrary content, valid until the thread's next call."""
        nbytes = math.prod(shape) * dtype.itemsize
        if self._memory.nbytes < nbytes:
            self._memory = np.empty(nbytes, np.uint8)
        return self._memory[:nbytes].view(dtype).reshape(shape)
