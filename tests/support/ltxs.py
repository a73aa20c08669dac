"""Tiny LTX-Videos of diffusers' with drawn sizes and random weights, and one input for either implementation."""

import random
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import LTXConditionPipeline, LTXVideoTransformer3DModel
from parity import randomise
from torch import Tensor

from tubelet.layout import Grid, Rows, TokenLayout
from tubelet.models import LTXTransformer, ltx_places

KINDS = ("plain", "causal", "masked", "tokens", "keyframe")
"""Eight frames in the first cell (to 0.9.1); one (since 0.9.5), at two frame rates; text of two lengths; noise levels
per token; a given later frame before the video, with places of its own."""

GRID = (3, 2, 4)
KEYFRAME = 16
"""The first pixel frame of the given one."""


def peer(kind: str, seed: int = 0) -> LTXVideoTransformer3DModel:
    """A model of diffusers' in float32 whose every parameter is random."""
    draw = random.Random(f"{kind}{seed}")
    heads, head_dim = draw.choice([(1, 12), (2, 8), (1, 16), (2, 10), (3, 6)])  # 0, 2 and 1 pairs that do not turn
    channels = draw.choice([2, 5])
    model = LTXVideoTransformer3DModel(
        in_channels=channels,
        out_channels=draw.choice([None, channels]),
        num_attention_heads=heads,
        attention_head_dim=head_dim,
        cross_attention_dim=heads * head_dim,
        num_layers=draw.randint(2, 3),
        caption_channels=draw.choice([6, 10]),
        norm_eps=draw.choice([1e-6, 1e-5]),
    )
    return randomise(model, seed)


@dataclass
class Question:
    """Latents (b, n, c), times of 0 to 1000, text and its lengths; two samples of one size, as the peer needs."""

    kind: str
    latents: Tensor
    time: Tensor
    text: Tensor
    lengths: list[int]
    fps: Tensor

    def theirs(self, model: LTXVideoTransformer3DModel, grad: bool = False) -> Tensor:
        """The peer's answer (b, n, c)."""
        dtype = model.proj_out.weight.dtype
        mask = torch.arange(self.text.shape[1]) < torch.tensor(self.lengths)[:, None]
        with torch.set_grad_enabled(grad):
            return model(
                self.latents.to(dtype), self.text.to(dtype), self.time, mask, return_dict=False, **self._where()
            )[0]  # fmt: skip

    def _where(self) -> dict[str, Any]:
        """The places as diffusers' two pipelines give them, in float32 where that is not lifted."""
        if self.kind == "plain":
            sides = dict(zip(("num_frames", "height", "width"), GRID, strict=True))
            return {**sides, "rope_interpolation_scale": (8 / float(self.fps[0]), 32, 32)}
        pipeline = LTXConditionPipeline
        ids = pipeline._scale_video_ids(pipeline._prepare_video_ids(2, *GRID))
        if self.kind == "keyframe":
            given = pipeline._scale_video_ids(pipeline._prepare_video_ids(2, 1, *GRID[1:]), frame_index=KEYFRAME)
            ids = torch.cat([given, ids], dim=2)
        ids = ids.float()
        ids[:, 0] = ids[:, 0] * (1 / self.fps.float())[:, None]
        return {"video_coords": ids}

    def ours(self, model: LTXTransformer, grad: bool = False) -> Tensor:
        """Our answer in the same form."""
        dtype = model.project.weight.dtype
        index = TokenLayout.dense(2, Grid(*GRID)).on("cpu")
        places = ltx_places(index, index.rows(self.fps, "sample"), causal=self.kind != "plain")
        if self.kind == "keyframe":
            still = places[:, : GRID[1] * GRID[2]].clone()
            still[..., 0] = KEYFRAME / self.fps.double()[:, None]
            places, index = torch.cat([still, places], dim=1), TokenLayout.dense(2, Grid(4, *GRID[1:])).on("cpu")
        t = Rows(self.time / 1000) if self.time.ndim == 1 else index.rows(self.time.flatten() / 1000, "token")
        text_layout = TokenLayout.padded(self.lengths, self.text.shape[1])
        with torch.set_grad_enabled(grad):
            return model(self.latents.to(dtype), t, self.text.to(dtype), index, text_layout, places)


def question(kind: str, model: LTXVideoTransformer3DModel, seed: int = 0) -> Question:
    """Random inputs in float64 that fit a model."""
    draw, c = torch.Generator().manual_seed(seed), model.config
    tokens = 32 if kind == "keyframe" else 24
    per_token = torch.randint(0, 1000, (2, tokens), generator=draw).double()
    return Question(
        kind,
        torch.randn(2, tokens, c.in_channels, generator=draw, dtype=torch.float64),
        per_token if kind in ("tokens", "keyframe") else torch.tensor([3.0, 500.0], dtype=torch.float64),
        torch.randn(2, 5, c.caption_channels, generator=draw, dtype=torch.float64),
        [5, 2] if kind == "masked" else [5, 5],
        torch.tensor([25.0, 25.0] if kind == "plain" else [24.0, 30.0], dtype=torch.float64),
    )


@contextmanager
def in_float64(model: LTXVideoTransformer3DModel, monkeypatch: Any) -> Any:
    """The peer without its roundings to float32: the name and the method mean float64."""
    with _lifted(monkeypatch):
        yield model.double()


@contextmanager
def exact_tables(model: LTXVideoTransformer3DModel, monkeypatch: Any) -> Any:
    """The peer with cosines and sines of places and times as exact as float32 holds them; its angles reach 15,708."""

    def exact(table: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*inputs: Any) -> Any:
            with _lifted(monkeypatch):
                out = table(*(x.double() if isinstance(x, Tensor) else x for x in inputs))
            return out.to(torch.float32) if isinstance(out, Tensor) else tuple(x.to(torch.float32) for x in out)

        return forward

    with monkeypatch.context() as patch:
        for module in (model.rope, model.time_embed.emb.time_proj):
            patch.setattr(module, "forward", exact(module.forward))
        yield model


@contextmanager
def _lifted(monkeypatch: Any) -> Any:
    with monkeypatch.context() as patch:
        patch.setattr(torch, "float32", torch.float64)
        patch.setattr(Tensor, "float", Tensor.double)
        yield
