"""Muon and AdamW as one optimiser: each parameter moves as it would under its own."""

import copy

import pytest
import torch
from torch import nn

from tubelet.training import MuonAdamW, set_lr


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Conv3d(2, 5, (1, 2, 3)), nn.Linear(7, 3)])
        self.head = nn.Linear(4, 2)


def gradients(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator)


def test_each_parameter_moves_as_under_its_own_optimiser() -> None:
    torch.manual_seed(0)
    model = Model()
    kernels = {name: nn.Parameter(p.detach().reshape(len(p), -1).clone()) for name, p in model.named_parameters()
               if name in ("blocks.0.weight", "blocks.1.weight")}  # fmt: skip
    others = {name: nn.Parameter(p.detach().clone()) for name, p in model.named_parameters() if name not in kernels}
    ours = MuonAdamW(model, lr=1e-3, muon_lr=1e-2, inside="^blocks")
    muon = torch.optim.Muon(kernels.values(), 1e-2, momentum=0.95, weight_decay=0.01)
    adamw = torch.optim.AdamW(others.values(), 1e-3, betas=(0.9, 0.95), weight_decay=0.01)
    for step, factor in enumerate((0.5, 1.0, 0.2)):
        gradients(model, step)
        for name, p in model.named_parameters():
            twin = {**kernels, **others}[name]
            twin.grad = p.grad.reshape(twin.shape).clone()
        for optimizer in (ours, muon, adamw):
            set_lr(optimizer, factor)
            optimizer.step()
    for name, p in model.named_parameters():
        assert torch.equal(p.reshape({**kernels, **others}[name].shape), {**kernels, **others}[name]), name


def test_it_goes_on_from_its_state() -> None:
    torch.manual_seed(0)
    first, second = Model(), Model()
    whole = MuonAdamW(first, lr=1e-3, muon_lr=1e-2, inside="blocks")
    for step in range(2):
        gradients(first, step)
        whole.step()
    second.load_state_dict(first.state_dict())
    again = MuonAdamW(second, lr=1e-3, muon_lr=1e-2, inside="blocks")
    again.load_state_dict(copy.deepcopy(whole.state_dict()))
    for model, optimizer in ((first, whole), (second, again)):
        gradients(model, 2)
        optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True))


def test_what_has_no_gradient_stays_and_gradients_are_forgotten() -> None:
    model = Model()
    optimizer = MuonAdamW(model, lr=1e-3, muon_lr=1e-2, inside="blocks")
    gradients(model, 0)
    model.blocks[0].weight.grad = None
    before = model.blocks[0].weight.detach().clone(), model.blocks[1].weight.detach().clone()
    optimizer.step()
    assert torch.equal(before[0], model.blocks[0].weight)
    assert not torch.equal(before[1], model.blocks[1].weight)
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())


def test_without_kernels_it_is_adamw_and_strided_kernels_are_refused() -> None:
    assert MuonAdamW(nn.Linear(2, 2), lr=1e-3, muon_lr=1e-2).muon is None
    model = Model().to(memory_format=torch.channels_last_3d)
    with pytest.raises(ValueError, match=r"parameters must be contiguous, .* but blocks.0.weight is not"):
        MuonAdamW(model, lr=1e-3, muon_lr=1e-2, inside="blocks")
