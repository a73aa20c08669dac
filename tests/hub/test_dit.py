"""DiT's adapters: configs both ways, and weights that return bit by bit, of diffusers' form and of the authors'."""

import dataclasses
from pathlib import Path
from typing import Any

import dits
import pytest
import torch
from diffusers import DiTTransformer2DModel
from parity import error
from safetensors.torch import load_file
from torch import Tensor

from tubelet.hub import from_diffusers, load_diffusers, save_diffusers, to_diffusers
from tubelet.hub.dit import dit_config_from_diffusers, dit_config_to_diffusers, dit_keys, dit_published_keys
from tubelet.layout import Grid, TokenLayout
from tubelet.models import DiT, DiTConfig, dit_b, dit_l, dit_s, dit_xl
from tubelet.patchify import fold

PRESETS = [make(patch) for make in (dit_s, dit_b, dit_l, dit_xl) for patch in (8, 4, 2)]


@pytest.mark.parametrize("config", PRESETS)
def test_our_configs_return(config: DiTConfig) -> None:
    side = 32 // config.patch[1]
    theirs = dataclasses.replace(config, freq_shift=1, mlp_eps=1e-5, base_grid=(side, side))
    assert dit_config_from_diffusers(dit_config_to_diffusers(theirs)) == theirs
    assert dit_config_to_diffusers(theirs)["sample_size"] == 32


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_their_configs_and_weights_return_bit_by_bit(seed: int) -> None:
    theirs = dits.peer(seed)
    state = theirs.state_dict()
    model = from_diffusers(dict(theirs.config) | {"_class_name": "DiTTransformer2DModel"}, state)
    config, back = to_diffusers(model)
    known = {k: v for k, v in theirs.config.items() if not k.startswith("_")}
    known["out_channels"] = known["out_channels"] or known["in_channels"]
    assert {k: v for k, v in config.items() if k != "_class_name"} == known
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)
    assert len({tensor.data_ptr() for tensor in back.values()}) == len(back)  # files hold no tensor twice
    keys = dit_keys(model.config)
    assert all(torch.equal(t, model.state_dict()[name]) for name, t in keys.to_ours(back).items())


def test_what_we_save_they_read_and_we(tmp_path: Path) -> None:
    theirs = dits.peer()
    config = dict(theirs.config) | {"_class_name": "DiTTransformer2DModel"}
    folder = save_diffusers(from_diffusers(config, theirs.state_dict()), tmp_path / "ours")
    again = DiTTransformer2DModel.from_config(DiTTransformer2DModel.load_config(folder)).eval()
    again.load_state_dict(load_file(folder / "diffusion_pytorch_model.safetensors"))
    asked = dits.question("trained", theirs)
    assert torch.equal(asked.theirs(again), asked.theirs(theirs))
    assert error(asked.ours(load_diffusers(folder)), asked.theirs(theirs)) <= 1e-5


def test_blocks_with_different_embeddings_are_refused() -> None:
    theirs = dits.peer()
    state = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    name = "transformer_blocks.1.norm1.emb.timestep_embedder.linear_2.bias"
    state[name][3] += 1
    with pytest.raises(ValueError, match=f"{name} differs from transformer_blocks.0"):
        from_diffusers(dict(theirs.config) | {"_class_name": "DiTTransformer2DModel"}, state)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"sizes": 3}, r"config has keys \['sizes'\]"),
        ({"activation_fn": "geglu"}, "activation_fn='geglu', but this model has 'gelu-approximate'"),
        ({"norm_elementwise_affine": True}, "norm_elementwise_affine=True"),
        ({"dropout": 0.1}, "dropout=0.1"),
        ({"out_channels": 3}, "out_channels=3 are fewer than in_channels=4"),
        ({"sample_size": 33}, "sample_size=33 is not a multiple of patch_size=2"),
    ],
)
def test_configs_of_other_models_are_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        dit_config_from_diffusers(config)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"freq_shift": 0}, "freq_shift=0, but DiTTransformer2DModel has 1"),
        ({"mlp_dim": 100}, "mlp_dim=100, but DiTTransformer2DModel has 1536"),
        ({"base_grid": None}, "base_grid=None"),
        ({"base_grid": (2, 3)}, r"base_grid=\(2, 3\)"),
        ({"patch": (2, 2, 2)}, r"patch=\(2, 2, 2\)"),
        ({"time_shift": 0.0}, "time_shift=0.0"),
    ],
)
def test_what_has_no_place_in_their_config_is_named(change: dict[str, Any], says: str) -> None:
    config = dataclasses.replace(dit_s(), freq_shift=1, base_grid=(16, 16))
    with pytest.raises(ValueError, match=says):
        dit_config_to_diffusers(dataclasses.replace(config, **change))


def published(config: DiTConfig, side: int) -> dict[str, Tensor]:
    """A file of the authors' with random weights, from the sizes that their code gives its modules."""
    d, p, hidden = config.dim, config.patch[1], config.mlp_dim
    shapes: dict[str, tuple[int, ...]] = {
        "x_embedder.proj.weight": (d, config.latent_channels, p, p), "x_embedder.proj.bias": (d,),
        "t_embedder.mlp.0.weight": (d, 256), "t_embedder.mlp.0.bias": (d,),
        "t_embedder.mlp.2.weight": (d, d), "t_embedder.mlp.2.bias": (d,),
        "y_embedder.embedding_table.weight": (config.classes + 1, d),
        "final_layer.linear.weight": (config.out_dim, d),
        "final_layer.linear.bias": (config.out_dim,),
        "final_layer.adaLN_modulation.1.weight": (2 * d, d), "final_layer.adaLN_modulation.1.bias": (2 * d,),
    }  # fmt: skip
    for i in range(config.depth):
        for name, out, into in (
            ("attn.qkv", 3 * d, d), ("attn.proj", d, d), ("mlp.fc1", hidden, d), ("mlp.fc2", d, hidden),
            ("adaLN_modulation.1", 6 * d, d),
        ):  # fmt: skip
            shapes |= {f"blocks.{i}.{name}.weight": (out, into), f"blocks.{i}.{name}.bias": (out,)}
    state = {name: torch.randn(shape, dtype=torch.float64) * 0.2 for name, shape in shapes.items()}
    # the table's own convention: columns first, sines before cosines
    omega = 10000.0 ** -(torch.arange(d // 4, dtype=torch.float64) / (d / 4))
    rows, columns = (axis.flatten() for axis in torch.meshgrid(*[torch.arange(side)] * 2, indexing="ij"))
    halves = [
        torch.cat([(places[:, None] * omega).sin(), (places[:, None] * omega).cos()], 1) for places in (columns, rows)
    ]
    return state | {"pos_embed": torch.cat(halves, 1)[None].float()}


def by_definition(state: dict[str, Tensor], config: DiTConfig, z: Tensor, steps: Tensor, labels: Tensor) -> Tensor:
    """The published model in float64, from its file: images (b, c, h, w) to (b, 2c, h, w)."""

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        normed = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-6).sqrt()
        return normed * (1 + scale[:, None]) + shift[:, None]

    def silu(x: Tensor) -> Tensor:
        return x * x.sigmoid()

    (b, _, side, _), p, heads = z.shape, config.patch[1], config.heads
    weight, bias = state["x_embedder.proj.weight"], state["x_embedder.proj.bias"]
    x = torch.nn.functional.conv2d(z, weight, bias, stride=p).flatten(2).mT + state["pos_embed"].double()
    angles = steps[:, None] * 10000.0 ** -(torch.arange(128, dtype=torch.float64) / 128)
    time = linear(silu(linear(torch.cat([angles.cos(), angles.sin()], 1), "t_embedder.mlp.0")), "t_embedder.mlp.2")
    c = time + state["y_embedder.embedding_table.weight"][labels]
    for i in range(config.depth):
        one, two, three, four, five, six = linear(silu(c), f"blocks.{i}.adaLN_modulation.1").chunk(6, 1)
        q, k, v = linear(modulated(x, one, two), f"blocks.{i}.attn.qkv").unflatten(-1, (3, heads, -1)).unbind(2)
        weights = (torch.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5).softmax(-1)
        mixed = torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2)
        x = x + three[:, None] * linear(mixed, f"blocks.{i}.attn.proj")
        u = linear(modulated(x, four, five), f"blocks.{i}.mlp.fc1")
        u = 0.5 * u * (1 + ((2 / torch.pi) ** 0.5 * (u + 0.044715 * u**3)).tanh())
        x = x + six[:, None] * linear(u, f"blocks.{i}.mlp.fc2")
    shift, scale = linear(silu(c), "final_layer.adaLN_modulation.1").chunk(2, 1)
    x = linear(modulated(x, shift, scale), "final_layer.linear")
    x = x.reshape(b, side // p, side // p, p, p, -1)
    return torch.einsum("bhwpqc->bchpwq", x).reshape(b, -1, side, side)


@pytest.mark.parametrize("patch", [1, 2])
def test_the_published_files_make_the_published_model(patch: int) -> None:
    """Against its definition in float64; and the file returns bit by bit."""
    config = DiTConfig(dim=24, depth=2, heads=3, mlp_dim=40, classes=4, patch=(1, patch, patch))
    state, grid = published(config, 3), Grid(1, 3, 3)
    keys = dit_published_keys(config, grid=(3, 3))
    model = DiT(config, dtype=torch.float64)
    model.load_state_dict(keys.to_ours(state))
    z, steps, labels = torch.randn(2, 4, 3 * patch, 3 * patch).double(), torch.tensor([0, 731]), torch.tensor([4, 1])
    layout = TokenLayout.dense(2, grid)
    t = layout.rows((steps.double() + 1) / 1000, "sample")
    with torch.no_grad():
        got = dits.as_images(model, model(fold(z[:, :, None], config.patch), t, layout, labels), grid)
    # their table of positions is rounded to float32
    assert error(got, by_definition(state, config, z, steps, labels)) <= 1e-6
    exact = dict(state)
    exact["pos_embed"] = model.positions(layout.on("cpu").coords[:1], torch.float64)
    assert error(got, by_definition(exact, config, z, steps, labels)) <= 1e-12
    back = keys.to_theirs(model.state_dict())
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_files_of_other_positions_are_refused() -> None:
    config = DiTConfig(dim=24, depth=1, heads=3, mlp_dim=40, classes=4)
    state = published(config, 3)
    with pytest.raises(ValueError, match=r"pos_embed has shape \(1, 9, 24\), but grid=\(4, 4\) makes 16 places"):
        dit_published_keys(config, grid=(4, 4)).to_ours(state)
    state["pos_embed"][0, 1, 0] += 1e-3
    with pytest.raises(ValueError, match="other numbers than the sinusoids"):
        dit_published_keys(config, grid=(3, 3)).to_ours(state)
    with pytest.raises(ValueError, match=r"patch=\(2, 2, 2\)"):
        dit_published_keys(dataclasses.replace(config, patch=(2, 2, 2)))
