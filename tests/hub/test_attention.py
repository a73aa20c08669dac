"""Our attention inside diffusers' models: nothing changes under Joint(), a pattern is its mask, padding is exact."""

from dataclasses import dataclass
from typing import Any

import diffusers
import pytest
import torch
import wans
from parity import error, randomise
from torch import Tensor, nn
from torch.nn import functional as F

from tubelet import Grid, TokenLayout
from tubelet.attention import Joint, Spatial, Window
from tubelet.hub import use_attend

GRID, TEXT, WIDTH = Grid(3, 2, 4), 5, 8
"""Tokens of the video, of the text, and numbers of each text token; no two sequences of a model are equally long."""


@dataclass
class Case:
    """A tiny model, its inputs, and where the text is in joint attention: "first", "last" or "" where it is apart."""

    model: nn.Module
    inputs: dict[str, Any]
    text: str = ""
    grid: Grid = GRID

    @property
    def axes(self) -> bool:
        """Whether its blocks attend along some axes only."""
        return isinstance(self.model, diffusers.LatteTransformer3DModel)

    def __call__(self) -> Tensor:
        with torch.no_grad():
            return self.model(**self.inputs, return_dict=False)[0]


def case(name: str, batch: int = 2) -> Case:
    """A model of a family, in float64 but for what it rounds itself, with every parameter random."""
    torch.manual_seed(1)
    heads: dict[str, Any] = {"num_attention_heads": 2, "in_channels": 4, "out_channels": 4, "num_layers": 1}
    video = torch.randn(batch, 4, GRID.t, 2 * GRID.h, 2 * GRID.w)
    common = {"timestep": torch.full((batch,), 500), "encoder_hidden_states": torch.randn(batch, TEXT, WIDTH)}
    mask = torch.ones(batch, TEXT, dtype=torch.long)
    if name == "wan":
        sizes = {"attention_head_dim": 12, "ffn_dim": 8, "text_dim": WIDTH}
        model = diffusers.WanTransformer3DModel(**heads, **sizes)
        return _random(model, {"hidden_states": video, **common})
    if name == "cosmos":
        sizes = {"attention_head_dim": 24, "text_embed_dim": WIDTH, "adaln_lora_dim": 4, "max_size": (4, 8, 8)}
        model = diffusers.CosmosTransformer3DModel(**heads, **sizes, mlp_ratio=1.0, concat_padding_mask=False)
        return _random(model, {"hidden_states": video, **common, "fps": 8})
    if name == "ltx":
        sizes = {"attention_head_dim": 12, "cross_attention_dim": 24, "caption_channels": WIDTH}
        model = diffusers.LTXVideoTransformer3DModel(**heads, **sizes)
        grid = {"num_frames": GRID.t, "height": GRID.h, "width": GRID.w, "encoder_attention_mask": mask}
        return _random(model, {"hidden_states": torch.randn(batch, GRID.tokens, 4), **common, **grid})
    if name == "allegro":
        sizes = {"attention_head_dim": 12, "cross_attention_dim": 24, "caption_channels": WIDTH}
        model = diffusers.AllegroTransformer3DModel(**heads, **sizes, sample_height=8, sample_width=8, sample_frames=3)
        rotary = _allegro_rotary()
        masks = {"attention_mask": torch.ones(batch, *video.shape[2:]), "encoder_attention_mask": mask}
        return _random(model, {"hidden_states": video, **common, **masks, "image_rotary_emb": rotary})
    if name == "latte":
        sizes = {"attention_head_dim": 12, "cross_attention_dim": 24, "caption_channels": WIDTH, "sample_size": 4}
        more = {"patch_size": 2, "norm_type": "ada_norm_single", "video_length": GRID.t, "attention_bias": True}
        model = diffusers.LatteTransformer3DModel(**heads, **sizes | {"sample_size": 8}, **more)
        return _random(model, {"hidden_states": torch.randn(batch, 4, 3, 8, 8), **common}, grid=Grid(3, 4, 4))
    if name == "cogvideox":
        sizes = {"attention_head_dim": 24, "text_embed_dim": WIDTH, "time_embed_dim": 4, "max_text_seq_length": TEXT}
        places = {"sample_width": 8, "sample_height": 4, "sample_frames": 9}
        model = diffusers.CogVideoXTransformer3DModel(**heads, **sizes, **places)
        return _random(model, {"hidden_states": video.transpose(1, 2), **common}, "first")
    if name == "hunyuan":
        sizes = {"attention_head_dim": 12, "text_embed_dim": WIDTH, "pooled_projection_dim": 6}
        more = {"num_single_layers": 1, "num_refiner_layers": 1, "rope_axes_dim": (4, 4, 4), "guidance_embeds": False}
        model = diffusers.HunyuanVideoTransformer3DModel(**heads, **sizes, **more)
        text = {"encoder_attention_mask": mask, "pooled_projections": torch.randn(batch, 6)}
        return _random(model, {"hidden_states": video, **common, **text}, "last")
    sizes = {"attention_head_dim": 12, "text_embed_dim": WIDTH, "time_embed_dim": 8, "pooled_projection_dim": 16}
    model = diffusers.MochiTransformer3DModel(**heads | {"num_layers": 2}, **sizes)
    return _random(model, {"hidden_states": video, **common, "encoder_attention_mask": mask.bool()}, "last")


def _allegro_rotary() -> Any:
    """Frequencies and places of each axis, as Allegro's pipeline makes them."""
    from diffusers.models.embeddings import get_3d_rotary_pos_embed_allegro

    *frequencies, t, h, w = get_3d_rotary_pos_embed_allegro(12, ((0, 0), (GRID.h, GRID.w)), (GRID.h, GRID.w), GRID.t)
    places = torch.cartesian_prod(t.long(), h.long(), w.long()).T
    return tuple(frequencies), tuple(places[:, None])


def _random(model: nn.Module, inputs: dict[str, Any], text: str = "", grid: Grid = GRID) -> Case:
    return Case(randomise(model), inputs, text, grid)


NAMES = ("allegro", "cogvideox", "cosmos", "hunyuan", "latte", "ltx", "mochi", "wan")

pytestmark = pytest.mark.filterwarnings("ignore:In CPU autocast")  # Mochi's, where it asks for float32


@pytest.mark.parametrize("name", NAMES)
def test_nothing_changes_under_joint(name: str) -> None:
    tiny = case(name)
    plain = tiny()
    with use_attend(tiny.model, tiny.grid):
        assert error(tiny(), plain) <= 1e-6
    with use_attend(tiny.model, tiny.grid, backend="reference"):
        assert error(tiny(), plain) <= 1e-6
    assert torch.equal(tiny(), plain)


@pytest.mark.parametrize("name", NAMES)
def test_a_pattern_is_its_mask(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The untouched model, whose own call gets the mask of windows written out, in its own order of tokens."""
    tiny = case(name)
    plain, sides = tiny(), (2, 1, 2)
    with use_attend(tiny.model, tiny.grid, pattern=Window(sides)):
        ours = tiny()
    original = F.scaled_dot_product_attention

    def masked(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **rest: Any) -> Tensor:
        if (mask := _mask(tiny, sides, query.shape[-2], key.shape[-2])) is not None:
            if attn_mask is not None:
                mask = mask & attn_mask if attn_mask.dtype == torch.bool else attn_mask.masked_fill(~mask, -torch.inf)
            attn_mask = mask
        return original(query, key, value, attn_mask=attn_mask, **rest)

    with monkeypatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", masked)
        expected = tiny()
    assert error(expected, plain) > 1e-2
    assert error(ours, expected) <= 1e-6


def _mask(tiny: Case, sides: tuple[int, int, int], queries: int, keys: int) -> Tensor | None:
    """Which tokens share a window, or are text; None for cross-attention and for text alone."""
    grid = tiny.grid
    cells = [(t, h, w) for t in range(grid.t) for h in range(grid.h) for w in range(grid.w)]
    if tiny.axes and queries == keys == grid.h * grid.w:
        cells = [cell for cell in cells if cell[0] == 0]
    elif tiny.axes and queries == keys == grid.t:
        cells = [cell for cell in cells if cell[1:] == (0, 0)]
    text = queries - len(cells)
    if queries != keys or text not in ({0} if not tiny.text else range(TEXT + 1)):
        return None
    windows = torch.tensor([[x // side for x, side in zip(cell, sides, strict=True)] for cell in cells])
    same = (windows[:, None] == windows[None]).all(-1)
    before, after = (text, 0) if tiny.text == "first" else (0, text)
    return F.pad(same, (before, after, before, after), value=True)


LENGTHS = (3, 5)
MASKED = {
    "allegro": "encoder_attention_mask",
    "cosmos": "attention_mask",
    "hunyuan": "encoder_attention_mask",
    "ltx": "encoder_attention_mask",
    "mochi": "encoder_attention_mask",
}
"""The models that take a mask of the text, and its name."""


def padded(name: str) -> Case:
    """A case whose first prompt has three tokens of five."""
    tiny = case(name)
    mask = torch.arange(TEXT) < torch.tensor(LENGTHS)[:, None]
    tiny.inputs[MASKED[name]] = mask if name in ("cosmos", "mochi") else mask.long()
    return tiny


@pytest.mark.parametrize("pattern", [Joint(), Window((1, 2, 2))], ids=["joint", "window"])
@pytest.mark.parametrize("name", MASKED)
def test_padding_is_exact_as_a_mask_and_as_a_layout(name: str, pattern: Any) -> None:
    tiny = padded(name)
    with use_attend(tiny.model, GRID, pattern=pattern):
        masked = tiny()
    if pattern == Joint():
        plain = tiny()
        assert error(case(name)(), plain) > 1e-4
        assert error(masked, plain) <= 1e-6
    if name != "mochi":  # which drops what the mask hides before it attends
        text = TokenLayout.padded(LENGTHS, TEXT)
        with use_attend(tiny.model, TokenLayout.dense(2, GRID), text=text, pattern=pattern):
            assert error(tiny(), masked) <= 1e-6
    tiny.inputs["encoder_hidden_states"][0, LENGTHS[0] :] = 7.0
    if name != "hunyuan":  # whose pooled text reads the padding
        with use_attend(tiny.model, GRID, pattern=pattern):
            assert error(tiny(), masked) <= 1e-6


@pytest.mark.parametrize("name", ["allegro", "cosmos", "hunyuan", "ltx"])
def test_a_mask_that_text_contradicts_is_refused(name: str) -> None:
    tiny = padded(name)
    for lengths in ((2, 5), (4, 5)):
        text = TokenLayout.padded(lengths, TEXT)
        with use_attend(tiny.model, GRID, text=text), pytest.raises(ValueError, match="mask hides other tokens"):
            tiny()
    with (
        use_attend(tiny.model, GRID, text=TokenLayout.padded((3, 6), 6)),
        pytest.raises(ValueError, match=r"text has tokens \(2, 6\), but the model attends to \(2, 5\)"),
    ):
        tiny()


def test_prompts_without_a_mask_have_their_own_lengths() -> None:
    """What Wan's class cannot be told: each prompt alone, without its padding."""
    tiny = case("wan")
    with use_attend(tiny.model, GRID, text=TokenLayout.padded(LENGTHS, TEXT)):
        together = tiny()
    for i, length in enumerate(LENGTHS):
        alone = {name: value[i : i + 1] for name, value in tiny.inputs.items()}
        alone["encoder_hidden_states"] = alone["encoder_hidden_states"][:, :length]
        assert error(together[i : i + 1], Case(tiny.model, alone)()) <= 1e-6


def test_image_to_video_attends_to_text_and_to_the_image() -> None:
    model = wans.peer("image")
    asked = wans.question("image", model)
    plain = asked.theirs(model)
    with use_attend(model, Grid(3, 2, 4)):
        assert error(asked.theirs(model), plain) <= 1e-6
    with (
        use_attend(model, Grid(3, 2, 4), text=TokenLayout.padded([512, 512], 512)),
        pytest.raises(ValueError, match=r"text has tokens \(2, 512\), but the model attends to \(2, 5\)"),
    ):
        asked.theirs(model)


@pytest.mark.parametrize("name", ["hunyuan", "wan"])
def test_bfloat16(name: str) -> None:
    tiny = case(name)
    exact = tiny()
    tiny.model.bfloat16()
    tiny.inputs = {k: v.bfloat16() if v.is_floating_point() else v for k, v in tiny.inputs.items()}
    with use_attend(tiny.model, GRID):
        ours = error(tiny(), exact)
    assert ours <= 1.5 * error(tiny(), exact)


def test_several_videos_lie_on_one_row_of_ltx() -> None:
    """Each with its own size, times and prompt, as alone in the untouched model."""
    grids, lengths = (Grid(3, 2, 4), Grid(1, 3, 5)), (2, 5)
    tiny = case("ltx", batch=1)
    alone, tokens = [], []
    for grid, length in zip(grids, lengths, strict=True):
        inputs = {
            "hidden_states": torch.randn(1, grid.tokens, 4),
            "encoder_hidden_states": torch.randn(1, length, WIDTH),
            "timestep": torch.full((1, grid.tokens), 100 * length),
            "encoder_attention_mask": torch.ones(1, length),
            "video_coords": TokenLayout.dense(1, grid).on("cpu").coords.transpose(1, 2).float(),
        }
        tokens.append(inputs)
        alone.append(Case(tiny.model, inputs)())
    dims = {name: 2 if name == "video_coords" else 1 for name in tokens[0]}
    packed = {name: torch.cat([inputs[name] for inputs in tokens], dim) for name, dim in dims.items()}
    layout, text = TokenLayout.packed(grids), TokenLayout.packed([None, None], lengths)
    with use_attend(tiny.model, layout, text=text):
        together = Case(tiny.model, packed)()
    assert error(together, torch.cat(alone, 1)) <= 1e-6
    assert error(Case(tiny.model, packed)(), torch.cat(alone, 1)) > 1e-2
    with (
        use_attend(tiny.model, layout),
        pytest.raises(ValueError, match="text must say whose the prompts are, got text=None"),
    ):
        Case(tiny.model, packed)()
    with use_attend(tiny.model, layout, text=text), pytest.raises(ValueError, match="on one row, but the model has 2"):
        Case(tiny.model, case("ltx").inputs)()


def test_gradients_are_the_models_own_with_checkpointing_too() -> None:
    tiny = case("wan")

    def gradients() -> list[Tensor]:
        tiny.model.zero_grad()
        tiny.model(**tiny.inputs, return_dict=False)[0].square().mean().backward()
        return [p.grad for p in tiny.model.parameters() if p.grad is not None]

    plain = gradients()
    tiny.model.enable_gradient_checkpointing()
    with use_attend(tiny.model, GRID):
        ours = gradients()
    assert max(error(a, b) for a, b in zip(ours, plain, strict=True) if b.norm() > 1e-6) <= 1e-5
    with use_attend(tiny.model, GRID, pattern=Spatial()):
        assert max(error(a, b) for a, b in zip(gradients(), plain, strict=True)) > 1e-2


def test_one_handle_serves_batches_of_any_number_and_is_removed_by_name() -> None:
    handle = use_attend(case("wan").model, GRID)
    handle.remove()
    handle.remove()
    tiny, larger = case("cogvideox"), case("cogvideox", batch=3)
    handle = use_attend(tiny.model, GRID, pattern=Spatial())
    first = tiny()
    larger.model = tiny.model
    assert larger().shape[0] == 3
    with pytest.raises(ValueError, match=r"attends by a handle of use_attend already; remove\(\) it first"):
        use_attend(tiny.model, GRID)
    handle.remove()
    assert error(tiny(), first) > 1e-2


def test_what_others_put_in_the_place_of_a_forward_stays() -> None:
    tiny = case("wan")
    module, plain = tiny.model.blocks[0].attn1, tiny()
    module.forward = doubled = lambda *args, forward=module.forward: 2 * forward(*args)
    twice = tiny()
    assert error(twice, plain) > 1e-2
    with use_attend(tiny.model, GRID):
        assert error(tiny(), twice) <= 1e-6
    assert module.forward is doubled


def test_another_attention_backend_of_diffusers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = case("wan")
    registry = diffusers.models.attention_dispatch._AttentionBackendRegistry
    flex = diffusers.models.attention_dispatch.AttentionBackendName.FLEX
    monkeypatch.setitem(registry._backends, flex, lambda query, key, value, **rest: query)
    monkeypatch.setitem(registry._supported_arg_names, flex, {"query", "key", "value"})
    with (
        use_attend(tiny.model, GRID),
        diffusers.models.attention_dispatch.attention_backend("flex"),
        pytest.raises(RuntimeError, match="WanAttnProcessor never called scaled_dot_product_attention; set diffusers'"),
    ):
        tiny()


def test_what_cannot_be_served_exactly_is_refused() -> None:
    with pytest.raises(ValueError, match="Linear is not known; use_attend knows AllegroTransformer3DModel, Cog"):
        use_attend(nn.Linear(1, 1), GRID)
    tiny = case("wan")
    with use_attend(tiny.model, Grid(3, 2, 5)), pytest.raises(ValueError, match=r"tokens \(2, 24\), but layout has"):
        tiny()
    with use_attend(tiny.model, GRID, backend="chunked"), pytest.raises(ValueError, match="backend='chunked' cannot"):
        tiny()
    tiny = case("hunyuan")
    with (
        use_attend(tiny.model, Grid(3, 4, 4)),
        pytest.raises(ValueError, match=r"\(2, 29\) tokens, which are not text and"),
    ):
        tiny()
    tiny = case("mochi")
    with use_attend(tiny.model, TokenLayout.dense(2, GRID)), pytest.raises(ValueError, match=r"\(1, 29\) tokens, whic"):
        tiny()  # it attends a sample at a time
    tiny = case("latte")
    with (
        use_attend(tiny.model, TokenLayout.dense(2, tiny.grid)),
        pytest.raises(ValueError, match="need video as a Grid and no mask"),
    ):
        tiny()
    tiny = case("wan")

    def causal(attn: Any, hidden_states: Tensor, *rest: Any) -> Tensor:
        return F.scaled_dot_product_attention(*[hidden_states[:, None]] * 3, is_causal=True)[:, 0]

    tiny.model.blocks[0].attn1.set_processor(causal)
    with use_attend(tiny.model, GRID), pytest.raises(ValueError, match="got dropout_p=0.0 and is_causal=True"):
        tiny()


@pytest.mark.slow
@pytest.mark.graph
def test_a_compiled_model_attends_alike() -> None:
    tiny = case("wan")
    with use_attend(tiny.model, TokenLayout.dense(2, GRID), pattern=Window((3, 1, 2))):
        eager = tiny()
        compiled = torch.compile(tiny.model, backend="eager")
        with torch.no_grad():
            assert error(compiled(**tiny.inputs, return_dict=False)[0], eager) <= 1e-6
