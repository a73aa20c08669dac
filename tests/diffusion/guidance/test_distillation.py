"""A student that is told the strength: learned from its teacher, per sample, packed and guided again."""

import pytest
import torch
from denoisers import C, U, V, packed_state, randn
from torch import Tensor, nn

from tubelet.diffusion import cfg, distilled, packed
from tubelet.layout import LayoutIndex, Rows


class Student(nn.Module):
    """``a + guidance·b`` of two networks of the state: what guidance is, to be learned."""

    def __init__(self, layout: LayoutIndex) -> None:
        super().__init__()
        self.layout = layout
        self.base, self.slope = (
            nn.Sequential(nn.Linear(5, 64), nn.Tanh(), nn.Linear(64, 4)).double() for _ in range(2)
        )  # fmt: skip

    def forward(self, x: Tensor, t: Rows, *, guidance: Tensor) -> Tensor:
        strength = self.layout.rows(guidance, "sample").expand()[:, None]
        told = torch.cat([x, t.expand()[:, None].expand(len(x), 1)], dim=-1)
        return self.base(told) + strength * self.slope(told)


def test_a_student_learns_its_teacher_at_every_strength() -> None:
    layout, _, t = packed_state()
    index, draw = layout.on("cpu"), torch.Generator().manual_seed(0)
    student = Student(index)
    optimiser = torch.optim.Adam(student.parameters(), 1e-2)

    def error() -> Tensor:
        x = torch.randn(13, 4, generator=draw, dtype=torch.float64)
        guidance = 1 + 7 * torch.rand(3, generator=draw, dtype=torch.float64)
        teacher = cfg(C, U, index.rows(guidance, "sample"))
        return (distilled(student, guidance)(x, t) - teacher(x, t)).square().mean()

    first = error().item()
    for _ in range(300):
        optimiser.zero_grad()
        error().backward()
        optimiser.step()
    assert error().item() < 0.05 * first  # without the strength no student comes below 0.15


def test_strengths_are_those_of_the_samples_and_it_is_a_denoiser_to_guide() -> None:
    layout, x, t = packed_state()
    twice = layout.repeat(2).on("cpu")

    def student(x: Tensor, t: Rows, *, guidance: Tensor) -> Tensor:
        strength = twice.rows(guidance, "sample").expand()[:, None]
        negative = twice.sample[:, None] >= 3
        return torch.where(negative, V(x, t), cfg(C, U, 1.0)(x, t) + (strength - 1) * (C(x, t) - U(x, t)))

    guidance = torch.tensor([1.0, 3.0, 7.0], dtype=torch.float64)
    both = packed(distilled(student, guidance.repeat(2)), layout.on("cpu"))
    strength = layout.rows(guidance, "sample")
    expected = cfg(cfg(C, U, strength), V, 2.0)(x, t)
    torch.testing.assert_close(cfg(*both, 2.0)(x, t), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.graph
def test_bad_input_is_refused() -> None:
    for wrong in (torch.tensor(3.0), torch.tensor([3]), randn(2, 2)):
        with pytest.raises(ValueError, match=r"guidance must be \(s,\) floating-point"):
            distilled(lambda x, t, *, guidance: x, wrong)
