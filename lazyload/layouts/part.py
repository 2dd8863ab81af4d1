"""Some of a model's layers as a model of their own, whose tensors are found where the whole model has them.

The source's layout describes the whole model, the target's the layers alone, counted from 0. So the arrays of the
source are unrolled for the whole model, those of other layers set aside, and the indices of the rest moved.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lazyload.errors import LayoutError
from lazyload.layouts.axes import Axes, Group
from lazyload.layouts.pattern import Array, Pattern
from lazyload.layouts.unroll import LAYER


@dataclass(frozen=True)
class Part:
    """Which layers of which model.

    Attributes:
        whole: The model.
        layers: Its layers that make up the part, step 1.
    """

    whole: Axes
    layers: range

    def cut(self, stored: Sequence[Array], model: Axes) -> tuple[list[Array], list[Array]]:
        """The whole model's arrays as those of the part, and the arrays that hold nothing of it.

        An array that holds other layers, too, stays whole, and only the boxes of these layers are read.

        Args:
            stored: The source's arrays, for the whole model.
            model: The part as a model of its own.

        Raises:
            LayoutError: An axis beside the layers is of another size in the part, so that its indices mean others.
        """
        moved: dict[Pattern, Pattern] = {}
        kept, others = [], []
        for array in stored:
            if not self._holds(array):
                others.append(array)
                continue
            for pattern in array.patterns:
                if pattern not in moved:
                    moved[pattern] = self._moved(pattern, model, array.path)
            kept.append(replace(array, patterns=tuple(moved[pattern] for pattern in array.patterns)))
        return kept, others

    def _holds(self, array: Array) -> bool:
        """Whether an array holds something of the part: one of its layers, or what belongs to no layer."""
        pattern = array.patterns[0]
        if LAYER not in pattern.indices:
            return True
        every, start = pattern.indices[LAYER], array.positions.get(LAYER, 0)
        return any(every[start + step] in self.layers for step, _ in pattern.steps(LAYER))

    def _moved(self, pattern: Pattern, model: Axes, path: str) -> Pattern:
        """A pattern as one of the part: its layers counted from the part's first, its group that of the part."""
        before = self.whole.groups(pattern.role)[pattern.group]
        groups = model.groups(pattern.role)
        number = next(number for number, group in enumerate(groups) if self._is_part_of(group, before))
        for axis in pattern.indices:
            sizes = [group.sizes.get(axis) for group in (before, groups[number])]
            if axis != LAYER and sizes[0] != sizes[1]:
                raise LayoutError(
                    f"{path}: {pattern.role!r} cannot be cut to some layers: its axis {axis} has size {sizes[0]} in "
                    f"the whole model and {sizes[1]} in these layers"
                )
        layers = pattern.indices.get(LAYER)
        if layers is None:
            return pattern
        counted = tuple(layer - self.layers.start for layer in layers)
        return replace(pattern, group=number, indices={**pattern.indices, LAYER: counted})

    def _is_part_of(self, group: Group, whole: Group) -> bool:
        """Whether a group of the part's layers is what is left of a group of the model's."""
        return [layer + self.layers.start for layer in group.layers] == [
            layer for layer in whole.layers if layer in self.layers
        ]
