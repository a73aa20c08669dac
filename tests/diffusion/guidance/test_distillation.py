"""A student that is told the strength: learned from its teacher, per sample, packed and guided again."""

from functools import partial

import pytest
import torch
from denoisers import C, U, V, packed_state, randn
from parity import randomise
from torch import Tensor, nn

from tubelet.diffusion import cfg, distilled, packed
from tubelet.layout import LayoutIndex, Rows, TokenLayout
from tubelet.models import OpenSoraConfig, OpenSoraTransformer
from tubelet.protocols import Denoiser


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


def test_a_model_that_is_told_the_strength_is_guided_from_a_negative_prompt() -> None:
    """Open-Sora 2, two prompts a sample of different lengths and a strength a sample, packed and one call each."""
    config = OpenSoraConfig(
        dim=16, heads=2, depth=1, single_depth=1, mlp_ratio=1.5, latent_channels=2, text_dim=5, pooled_dim=3,
        patch=(1, 1, 2), rope_axes=(2, 2, 4), guidance=True,
    )  # fmt: skip
    model = randomise(OpenSoraTransformer(config, dtype=torch.float64)).requires_grad_(False)
    layout, x, t = packed_state()
    lengths, strengths = ([2, 1, 3], [1, 4, 1]), torch.tensor([1.0, 3.0, 7.0], dtype=torch.float64)
    texts, pooled = [randn(sum(n), 5, seed=i) for i, n in enumerate(lengths)], [randn(3, 3, seed=i) for i in range(2)]

    def told(layout: TokenLayout, lengths: list[int], text: Tensor, pooled: Tensor, strengths: Tensor) -> Denoiser:
        words = TokenLayout.packed([None] * len(lengths), lengths)
        student = partial(model, text=text, layout=layout, text_layout=words, pooled=pooled)
        return distilled(student, strengths)

    each = [told(layout, n, text, vector, strengths) for n, text, vector in zip(lengths, texts, pooled, strict=True)]
    both = told(layout.repeat(2), [*lengths[0], *lengths[1]], torch.cat(texts), torch.cat(pooled), strengths.repeat(2))
    got, expected = cfg(*packed(both, layout.on("cpu")), 2.0)(x, t), cfg(*each, 2.0)(x, t)
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)
    weaker = told(layout, lengths[0], texts[0], pooled[0], strengths / 2)
    assert float((weaker(x, t) - each[0](x, t)).abs().max()) > 1e-3


@pytest.mark.graph
def test_bad_input_is_refused() -> None:
    for wrong in (torch.tensor(3.0), torch.tensor([3]), randn(2, 2)):
        with pytest.raises(ValueError, match=r"guidance must be \(s,\) floating-point"):
            distilled(lambda x, t, *, guidance: x, wrong)
