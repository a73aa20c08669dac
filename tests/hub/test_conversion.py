"""Checkpoints from form to form: every pair is the identity of weights, a shard at a time, whole or not at all."""

import json
import weakref
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import wans
from safetensors.torch import load_file
from torch import Tensor, nn

from tubelet import hub
from tubelet.hub.conversion import FORMS
from tubelet.models import VideoDiT, VideoDiTConfig, WanTransformer

LOAD: dict[str, Any] = {"tubelet": hub.load, "diffusers": hub.load_diffusers, "original": hub.load_original}
SAVE: dict[str, Any] = {"tubelet": hub.save, "diffusers": hub.save_diffusers, "original": hub.save_original}


@pytest.fixture(scope="module")
def model() -> WanTransformer:
    theirs = wans.peer("text", patch_size=(1, 2, 2), text_dim=4096, num_attention_heads=1, attention_head_dim=12)
    state = theirs.state_dict()
    state["proj_out.weight"] = state["proj_out.weight"].half()  # one of another dtype, which must stay
    made = hub.from_diffusers({**theirs.config, "_class_name": "WanTransformer3DModel"}, state)
    assert isinstance(made, WanTransformer)
    return made


def same(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().items(), b.state_dict().items(), strict=True)
    return all(x == y and s.dtype == t.dtype and torch.equal(s, t) for (x, s), (y, t) in pairs)


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("target_form", FORMS)
@pytest.mark.parametrize("source_form", FORMS)
def test_every_pair_of_forms(source_form: str, target_form: str, model: WanTransformer, tmp_path: Path) -> None:
    source = SAVE[source_form](model, tmp_path / "source", max_shard_size="100KB")
    target = tmp_path / "new" / "target"
    heard: list[tuple[int, int]] = []
    written = hub.convert(
        source,
        target,
        source_form=source_form,
        target_form=target_form,
        max_shard_size="30KB",
        on_tensor=lambda done, total: heard.append((done, total)),
    )
    assert written == target
    again = LOAD[target_form](target)
    assert same(again, model) and again.config == model.config
    assert [name.name for name in target.parent.iterdir()] == ["target"]
    total = len(model.state_dict())
    assert heard == [(i + 1, total) for i in range(total)]
    assert files(SAVE[target_form](model, tmp_path / "saved", max_shard_size="30KB")) == files(target)


def test_metadata_goes_along_between_folders_of_ours(model: WanTransformer, tmp_path: Path) -> None:
    source = hub.save(model, tmp_path / "source", metadata={"seed": 3})
    target = hub.convert(source, tmp_path / "target", source_form="tubelet", target_form="tubelet")
    assert hub.read_metadata(target) == {"seed": 3}


@pytest.mark.parametrize("source_form", FORMS)
def test_a_narrow_dtype_leaves_the_float32_islands(source_form: str, model: WanTransformer, tmp_path: Path) -> None:
    source = SAVE[source_form](model, tmp_path / "source")
    options: dict[str, Any] = {"source_form": source_form, "target_form": "tubelet", "dtype": torch.bfloat16}
    narrow = hub.load(hub.convert(source, tmp_path / "narrow", **options))
    saved = hub.save_diffusers(model, tmp_path / "theirs")
    assert same(narrow, hub.load_diffusers(saved, dtype=torch.bfloat16))
    assert narrow.time.up.weight.dtype == torch.float32  # type: ignore[union-attr]


def test_models_without_an_adapter_keep_their_form(tmp_path: Path) -> None:
    model = VideoDiT(VideoDiTConfig(latent_channels=4, dim=32, depth=1, heads=2, text_dim=8)).eval()
    source = hub.save(model, tmp_path / "source")
    options: dict[str, Any] = {"source_form": "tubelet", "target_form": "tubelet", "dtype": torch.float64}
    wide = hub.load(hub.convert(source, tmp_path / "wide", **options))
    assert same(wide, model.double())
    with pytest.raises(ValueError, match=r"VideoDiT has no adapter; there is one for .*WanModel \(WanTransformer"):
        hub.convert(source, tmp_path / "other", source_form="tubelet", target_form="original")
    assert not (tmp_path / "other").exists()


def test_no_more_than_a_shard_is_held(model: WanTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = hub.save_diffusers(model, tmp_path / "source")
    held: list[list[weakref.ref[Tensor]]] = []
    plain = safetensors.torch.save_file

    def noting(tensors: dict[str, Tensor], *rest: Any, **options: Any) -> None:
        assert not [ref for shard in held for ref in shard if ref() is not None]
        held.append([weakref.ref(tensor) for tensor in tensors.values()])
        plain(tensors, *rest, **options)

    monkeypatch.setattr(safetensors.torch, "save_file", noting)
    options: dict[str, Any] = {"source_form": "diffusers", "target_form": "original"}
    target = hub.convert(source, tmp_path / "target", max_shard_size="5KB", **options)
    assert len(held) > 5
    index = json.loads((target / "diffusion_pytorch_model.safetensors.index.json").read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert shards == [f"diffusion_pytorch_model-{i + 1:05}-of-{len(held):05}.safetensors" for i in range(len(held))]
    sizes = [sum(t.nbytes for t in load_file(target / shard).values()) for shard in shards]
    assert sum(sizes) == index["metadata"]["total_size"]
    assert all(a + b > 5_000 for a, b in pairwise(sizes))


def test_nothing_is_overwritten_and_nothing_is_left_of_what_fails(
    model: WanTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = hub.save(model, tmp_path / "source", max_shard_size="50KB")
    options: dict[str, Any] = {"source_form": "tubelet", "target_form": "diffusers"}
    (tmp_path / "full").mkdir()
    with pytest.raises(FileExistsError, match="full exists already"):
        hub.convert(source, tmp_path / "full", **options)
    with pytest.raises(FileExistsError, match="source exists already"):
        hub.convert(source, source, **options)

    def failing(done: int, total: int) -> None:
        if done > total // 2:
            raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        hub.convert(source, tmp_path / "half", max_shard_size="20KB", on_tensor=failing, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "source"]


def test_bad_requests_are_refused(model: WanTransformer, tmp_path: Path) -> None:
    source = hub.save(model, tmp_path / "source")
    with pytest.raises(ValueError, match="source_form must be one of tubelet, diffusers, original, got 'timm'"):
        hub.convert(source, tmp_path / "a", source_form="timm", target_form="tubelet")
    with pytest.raises(ValueError, match="target_form must be one of"):
        hub.convert(source, tmp_path / "a", source_form="tubelet", target_form="")
    with pytest.raises(ValueError, match="dtype must be floating-point, got torch.int8"):
        hub.convert(source, tmp_path / "a", source_form="tubelet", target_form="tubelet", dtype=torch.int8)
    with pytest.raises(ValueError, match="is a folder of tubelet's own form"):
        hub.convert(source, tmp_path / "a", source_form="diffusers", target_form="tubelet")
    with pytest.raises(ValueError, match="so it is not of tubelet.s own form"):
        theirs = hub.save_diffusers(model, tmp_path / "theirs")
        hub.convert(theirs, tmp_path / "a", source_form="tubelet", target_form="tubelet")
    with pytest.raises(FileNotFoundError, match="is a file; a model of diffusers' is a folder"):
        file = source / "model.safetensors"
        hub.convert(file, tmp_path / "a", source_form="diffusers", target_form="tubelet")
    with pytest.raises(ValueError, match="config is for sources in the original form, got WanConfig"):
        hub.convert(source, tmp_path / "a", source_form="tubelet", target_form="tubelet", config=model.config)
    assert not (tmp_path / "a").exists()
