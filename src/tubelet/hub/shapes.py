"""The shapes of a file's tensors, from which the config of a model is read where the file says nothing else."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["FileShapes"]


@dataclass(frozen=True)
class FileShapes:
    """The shapes of all tensors of a file by name; ``model`` is what errors call the class that they are to be of.

    Example:
        >>> file = FileShapes("Peer", {"blocks.0.up.weight": (8, 2), "blocks.1.up.weight": (8, 2)})
        >>> file.of("blocks.0.up.weight"), file.count("blocks"), file.has("blocks.0.up.bias")
        ((8, 2), 2, False)
    """

    model: str
    shapes: Mapping[str, tuple[int, ...]]

    def of(self, name: str, rank: int = 2) -> tuple[int, ...]:
        """The shape of a tensor that every such model has.

        Raises:
            ValueError: it is not there, or of another rank.

        Example:
            >>> FileShapes("Peer", {}).of("up.bias", 1)
            Traceback (most recent call last):
            ValueError: the tensors are not Peer's: there is no up.bias of rank 1
        """
        if len(found := self.shapes.get(name, ())) != rank:
            raise ValueError(f"the tensors are not {self.model}'s: there is no {name} of rank {rank}")
        return found

    def has(self, name: str) -> bool:
        """Whether there is such a tensor. Example: ``file.has("final_layer.bias")``."""
        return name in self.shapes

    def count(self, prefix: str) -> int:
        """How many modules ``prefix.0``, ``prefix.1`` and so on there are. Example: ``file.count("blocks")``."""
        names = (re.match(re.escape(prefix) + r"\.(\d+)\.", name) for name in self.shapes)
        return 1 + max((int(match[1]) for match in names if match), default=-1)
