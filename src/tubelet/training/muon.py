"""Muon for the matrices and kernels inside a model and AdamW for everything else, as one optimiser.

Muon (Jordan et al., 2024; ``torch.optim.Muon``) makes the update of a matrix orthogonal. The kernel of a convolution is
taken as the matrix from all that it sees to its outputs, ``(out, in·kt·kh·kw)``.
"""

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

__all__ = ["MuonAdamW"]

_INSIDE = r"\.(blocks|branch)\."


class MuonAdamW(torch.optim.Optimizer):
    """Two optimisers that step together; the groups are theirs, so :func:`tubelet.training.set_lr` scales both rates.

    Args:
        model: all its parameters are optimised.
        lr: of AdamW.
        muon_lr: of Muon.
        inside: a regular expression; Muon takes the parameters of two or more dimensions in whose name it is found, by
            default those of blocks and of residual branches.
        betas: of AdamW.
        momentum: of Muon.
        weight_decay: of both.

    Raises:
        ValueError: parameters that are not contiguous in memory, or a rate that is negative.

    Example:
        >>> from tubelet.training import set_lr
        >>> model = nn.ModuleDict({"blocks": nn.ModuleList([nn.Conv3d(2, 4, 3)]), "head": nn.Linear(4, 2)})
        >>> optimizer = MuonAdamW(model, lr=1e-3, muon_lr=1e-2, inside="^blocks")
        >>> set_lr(optimizer, 0.5)
        >>> [(len(group["params"]), group["lr"]) for group in optimizer.param_groups]
        [(3, 0.0005), (1, 0.005)]
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float,
        muon_lr: float,
        inside: str = _INSIDE,
        betas: tuple[float, float] = (0.9, 0.95),
        momentum: float = 0.95,
        weight_decay: float = 0.01,
    ) -> None:
        named = list(model.named_parameters())
        self.kernels = [p for name, p in named if p.ndim > 1 and re.search(inside, name)]
        if strided := [name for name, p in named if not p.is_contiguous()]:
            raise ValueError(f"parameters must be contiguous, to be read as matrices, but {strided[0]} is not")
        self.matrices = [nn.Parameter(p.detach().view(len(p), -1)) for p in self.kernels]  # of the same memory
        taken = set(map(id, self.kernels))
        others = [p for _, p in named if id(p) not in taken]
        self.adamw = torch.optim.AdamW([{"params": others}], lr, betas=betas, weight_decay=weight_decay)
        groups: list[dict[str, Any]] = [{"params": others, "lr": lr}]
        self.muon: torch.optim.Optimizer | None = None
        if self.kernels:
            self.muon = torch.optim.Muon(self.matrices, muon_lr, momentum=momentum, weight_decay=weight_decay)
            groups.append({"params": self.kernels, "lr": muon_lr})
        super().__init__(groups, {})

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of both; parameters without a gradient stay as they are."""
        loss = None if closure is None else closure()
        for matrix, kernel in zip(self.matrices, self.kernels, strict=True):
            matrix.grad = None if kernel.grad is None else kernel.grad.flatten(1)
        for part, group in zip((self.adamw, self.muon), self.param_groups, strict=False):
            if part is not None:
                part.param_groups[0]["lr"] = group["lr"]
                part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The states of both."""
        parts = {"adamw": self.adamw} | ({} if self.muon is None else {"muon": self.muon})
        return {name: part.state_dict() for name, part in parts.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take both states over; the rates of the groups are those of the next `set_lr`."""
        self.adamw.load_state_dict(state_dict["adamw"])
        if self.muon is not None:
            self.muon.load_state_dict(state_dict["muon"])
