"""Checkpoints that do not fit, at the edges: shards, dtypes, float32 islands, devices, values of other types."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tubelet import hub
from tubelet.hub.foreign import islands
from tubelet.models import CogVideoXConfig, CogVideoXTransformer, WanConfig, WanTransformer

SMALL = WanConfig(dim=24, depth=1, heads=2, mlp_dim=32)


def wan() -> WanTransformer:
    return WanTransformer(SMALL)


def shards(folder: Path) -> tuple[Path, list[Path]]:
    return next(folder.glob("*.index.json")), sorted(folder.glob("*.safetensors"))


FORMS: list[tuple[Callable[..., Path], Callable[..., nn.Module]]] = [
    (hub.save, hub.load),
    (hub.save_diffusers, hub.load_diffusers),
    (hub.save_original, hub.load_original),
]


@pytest.mark.parametrize(("save", "load"), FORMS)
def test_the_index_says_which_shard_counts(
    tmp_path: Path, save: Callable[..., Path], load: Callable[..., nn.Module]
) -> None:
    model = wan()
    index, [*earlier, last] = shards(save(model, tmp_path / "m", max_shard_size=9000))
    first = next(file for file in earlier if len(load_file(file)) > 1)
    other = next(file for file in earlier if file != first)
    name, stale = next(iter(load_file(first).items()))
    save_file(load_file(last) | {name: torch.full_like(stale, 9.0)}, last)
    loaded = load(tmp_path / "m")
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), loaded.parameters(), strict=True))
    owners = json.loads(index.read_text())
    del owners["weight_map"][name]
    index.write_text(json.dumps(owners))
    with pytest.raises(ValueError, match=rf"{name} is in .*{first.name} and in .*{last.name}, and no index says"):
        load(tmp_path / "m")
    owners["weight_map"][name] = other.name
    index.write_text(json.dumps(owners))
    with pytest.raises(ValueError, match=rf"{name} is in {other.name} by the index, but .* lacks it"):
        load(tmp_path / "m")


def test_float32_islands_are_the_same_by_every_way(tmp_path: Path) -> None:
    model, narrow = wan(), torch.bfloat16
    ours, theirs = hub.save(model, tmp_path / "ours"), hub.save_diffusers(model, tmp_path / "theirs")
    converted = hub.convert(ours, tmp_path / "b", source_form="tubelet", target_form="tubelet", dtype=narrow)
    bundle = hub.save_bundle(tmp_path / "whole.safetensors", {"wan": model})
    half = hub.save_bundle(tmp_path / "half.safetensors", {"wan": model}, dtype=narrow)
    wide = {name for name, _ in model.named_parameters() if islands(WanTransformer)(name)}
    for loaded in (
        hub.load(ours, dtype=narrow),
        hub.load(converted),
        hub.load_diffusers(theirs, dtype=narrow),
        hub.from_original(*hub.to_original(model), dtype=narrow),
        hub.load_bundle(bundle, dtype=narrow)["wan"],
        hub.load_bundle(half)["wan"],
    ):
        assert {name for name, p in loaded.named_parameters() if p.dtype == torch.float32} == wide
        assert {p.dtype for name, p in loaded.named_parameters() if name not in wide} == {narrow}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (key, value)
        for key, values in {
            "num_layers": ["2", 2.0, None, True, [2], {}],
            "patch_size": [2, None, [1, 2], [1, 2, "2"], [1.0, 2.0, 2.0]],
            "eps": [-1, "1e-6", None],
            "cross_attn_norm": [1, "yes", None],
            "attention_head_dim": [None],
            "text_dim": [[4096]],
        }.items()
        for value in values
    ],
)
def test_values_of_other_types_are_named(tmp_path: Path, key: str, value: Any) -> None:
    folder = hub.save_diffusers(wan(), tmp_path / "m")
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(ValueError, match=key) as caught:
        hub.load_diffusers(folder)
    assert str(folder) in str(caught.value) and repr(value) in str(caught.value)


def test_a_model_on_meta_has_shapes_alone(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {
        "dim": 32,
        "depth": 1,
        "heads": 2,
        "text_dim": 8,
        "rotary": False,
        "sincos": (1.0, 1.875, 1.875),
    }
    for model in (wan(), CogVideoXTransformer(CogVideoXConfig(**sizes))):
        folder = hub.save_diffusers(model, tmp_path / type(model).__name__)
        for loaded in (
            hub.load_diffusers(folder, device="meta"),
            hub.from_diffusers(*hub.to_diffusers(model), device="meta"),
            hub.load(hub.save(model, tmp_path / f"{type(model).__name__}-ours"), device="meta"),
        ):
            shapes = {name: (p.shape, p.device.type) for name, p in loaded.named_parameters()}
            assert shapes == {name: (p.shape, "meta") for name, p in model.named_parameters()}


@pytest.mark.graph  # without the tests' own checks of types, which come first
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda x: x.to(torch.complex64), "torch.complex64, expected floating-point"),
        (lambda x: x.int(), "torch.int32, expected floating-point"),
        (lambda x: x.bool(), "torch.bool, expected floating-point"),
        (lambda x: None, "must be a tensor, got NoneType"),
        (lambda x: x.numpy(), "must be a tensor, got ndarray"),
        (lambda x: x.to("meta"), "is on meta and has no numbers, which cpu needs"),
    ],
)
def test_values_that_are_no_weights_are_named(change: Callable[[Tensor], Any], says: str) -> None:
    config, state = hub.to_diffusers(wan())
    with pytest.raises(ValueError, match=f"patch_embedding.bias (is )?{says}"):
        hub.from_diffusers(config, state | {"patch_embedding.bias": change(state["patch_embedding.bias"])})


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_dtypes_of_no_weights_are_named(tmp_path: Path, dtype: torch.dtype) -> None:
    model = wan()
    ours, theirs = hub.save(model, tmp_path / "ours"), hub.save_diffusers(model, tmp_path / "theirs")
    for call in (
        lambda: hub.from_diffusers(*hub.to_diffusers(model), dtype=dtype),
        lambda: hub.load_diffusers(theirs, dtype=dtype),
        lambda: hub.load(ours, dtype=dtype),
        lambda: hub.save_bundle(tmp_path / "b.safetensors", {"wan": model}, dtype=dtype),
        lambda: hub.convert(ours, tmp_path / "new", source_form="tubelet", target_form="tubelet", dtype=dtype),
    ):
        with pytest.raises(ValueError, match=f"dtype must be .* got {dtype}"):
            call()


@pytest.mark.graph
@pytest.mark.parametrize("size", [0, -1, 1.5, None, True, "0GB", "5 apples", "-1MB"])
def test_sizes_of_no_shard_are_named(tmp_path: Path, size: Any) -> None:
    with pytest.raises(ValueError, match="max_shard_size must be a positive number of bytes or a text such as '500MB'"):
        hub.save(wan(), tmp_path / "m", max_shard_size=size)
    hub.save(wan(), tmp_path / "m", max_shard_size="0.5 MB")


def test_a_family_that_the_source_is_not_of(tmp_path: Path) -> None:
    ours = hub.save(wan(), tmp_path / "ours")
    forms: dict[str, Any] = {"source_form": "tubelet", "target_form": "diffusers"}
    with pytest.raises(ValueError, match="family='mochi', but .*ours holds a model of family 'wan'"):
        hub.convert(ours, tmp_path / "new", family="mochi", **forms)
    hub.convert(ours, tmp_path / "new", family="wan", **forms)
