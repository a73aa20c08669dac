"""Folders of diffusers' models: what they save we load, what we save they load, and misfits are one error."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import wans
from diffusers import WanTransformer3DModel
from parity import error
from safetensors.torch import load_file, save_file
from torch import nn

from tubelet.hub import foreign, from_diffusers, load_diffusers, save_diffusers, to_diffusers


@pytest.fixture
def saved(tmp_path: Path) -> tuple[WanTransformer3DModel, Path]:
    model = wans.peer("image")
    model.save_pretrained(tmp_path / "model" / "transformer", max_shard_size="30KB")
    return model, tmp_path / "model" / "transformer"


def test_their_shards_are_read_and_answer_alike(saved: tuple[WanTransformer3DModel, Path]) -> None:
    theirs, folder = saved
    assert len(list(folder.glob("*.safetensors"))) > 2
    asked = wans.question("image", theirs)
    ours = load_diffusers(folder)
    assert not ours.training
    assert error(asked.ours(ours), asked.theirs(theirs)) <= 1e-5
    again = load_diffusers(folder.parent, subfolder="transformer")
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), again.parameters(), strict=True))


def test_what_we_save_they_read(tmp_path: Path) -> None:
    ours = load_diffusers(save(tmp_path / "first", wans.peer("latents")))
    folder = save_diffusers(ours, tmp_path / "second", max_shard_size="10KB")
    index = json.loads((folder / "diffusion_pytorch_model.safetensors.index.json").read_text())
    shards = sorted(file.name for file in folder.glob("*.safetensors"))
    assert sorted(set(index["weight_map"].values())) == shards and len(shards) > 2
    # from_pretrained itself needs accelerate for this class
    theirs = WanTransformer3DModel.from_config(WanTransformer3DModel.load_config(folder)).eval()
    theirs.load_state_dict({k: v for shard in shards for k, v in load_file(folder / shard).items()})
    asked = wans.question("latents", theirs)
    assert error(asked.ours(ours), asked.theirs(theirs)) <= 1e-5
    with pytest.raises(ValueError, match="already holds"):
        save_diffusers(ours, folder)


def save(folder: Path, model: WanTransformer3DModel) -> Path:
    model.save_pretrained(folder)
    return folder


def test_a_narrow_dtype_leaves_the_float32_islands_that_diffusers_keeps(
    saved: tuple[WanTransformer3DModel, Path],
) -> None:
    theirs, folder = saved
    model = load_diffusers(folder, dtype=torch.bfloat16)
    _, state = to_diffusers(model)
    wide = {name for name, tensor in state.items() if tensor.dtype == torch.float32}
    assert wide == {name for name in state if set(name.split(".")) & set(wans.WIDE)}
    assert {tensor.dtype for name, tensor in state.items() if name not in wide} == {torch.bfloat16}
    assert all(p.dtype == torch.float64 for p in load_diffusers(folder, dtype=torch.float64).parameters())
    assert all(torch.equal(state[name], theirs.state_dict()[name].to(state[name].dtype)) for name in state)


@pytest.mark.graph  # the shape checks look into mappings too
def test_the_model_is_built_on_meta_and_each_tensor_read_once(
    saved: tuple[WanTransformer3DModel, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    plain = nn.Linear.__init__

    def noting(self: nn.Linear, *args: Any, **options: Any) -> None:
        made.append(str(options.get("device")))
        plain(self, *args, **options)

    monkeypatch.setattr(nn.Linear, "__init__", noting)
    before = torch.get_rng_state()
    load_diffusers(saved[1])
    assert set(made) == {"meta"}
    assert torch.equal(torch.get_rng_state(), before)
    theirs, read = saved[0].state_dict(), []

    class Noting(dict[str, torch.Tensor]):
        def __getitem__(self, name: str) -> torch.Tensor:
            read.append(name)
            return super().__getitem__(name)

    from_diffusers({"_class_name": "WanTransformer3DModel", **saved[0].config}, Noting(theirs))
    assert sorted(read) == sorted(theirs)


def test_misfits_are_listed_in_one_error_in_the_files_names(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", wans.peer("text"))
    path = folder / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    del state["blocks.1.attn1.to_q.bias"]
    state["patch_embedding.bias"] = torch.zeros(3)
    state["head.weight"] = torch.zeros(2)
    state["blocks.0.attn2.norm_added_q.weight"] = torch.zeros(4)  # the peer ignores this one too
    save_file(state, path)
    with pytest.raises(ValueError, match="do not fit WanTransformer3DModel in 3 places") as caught:
        load_diffusers(folder)
    message = str(caught.value)
    for part in (
        "missing blocks.1.attn1.to_q.bias (",
        "unexpected head.weight (2,)",
        "patch_embedding.bias is (3,), exp",
    ):
        assert part in message
    del state["head.weight"]
    with pytest.raises(ValueError, match="in 2 places"):
        from_diffusers(json.loads((folder / "config.json").read_text()), state)


def test_other_classes_and_empty_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "WanTransformer3DModel"}))
    with pytest.raises(FileNotFoundError, match=r"no weights file 'diffusion_pytorch_model\.safetensors'"):
        load_diffusers(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(["WanTransformer3DModel"]))
    with pytest.raises(ValueError, match=r"config\.json is damaged or of another format"):
        load_diffusers(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"_class": "tubelet.models.WanTransformer"}))
    with pytest.raises(ValueError, match=r"is a folder of tubelet's own form, which hub\.load reads"):
        load_diffusers(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "SomeModel"}))
    with pytest.raises(
        ValueError, match=r"SomeModel has no adapter; there is one for .*WanTransformer3DModel \(WanTra"
    ):
        load_diffusers(tmp_path)
    save_file({}, tmp_path / "diffusion_pytorch_model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "WanTransformer3DModel", "sizes": 1}))
    with pytest.raises(ValueError, match=rf"{tmp_path}: config has keys \['sizes'\]"):
        load_diffusers(tmp_path)
    with pytest.raises(ValueError, match="Linear has no adapter"):
        to_diffusers(nn.Linear(1, 1))
    with pytest.raises(FileNotFoundError, match="holds no config.json"):
        load_diffusers(tmp_path, subfolder="elsewhere")
    with pytest.raises(FileNotFoundError, match="neither a folder nor"):
        load_diffusers(tmp_path / "nowhere")
    index = {"weight_map": {"a": "../evil.safetensors"}}
    (tmp_path / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FileNotFoundError, match="no weights file '../evil.safetensors'"):
        load_diffusers(tmp_path)


def test_a_repository_gives_only_the_files_of_its_subfolder(
    saved: tuple[WanTransformer3DModel, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def download(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(saved[1].parent)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    model = load_diffusers("owner/wan", subfolder="transformer", revision="main")
    assert type(model).__name__ == "WanTransformer"
    patterns = ["transformer/*.safetensors", "transformer/*.json"]
    assert asked == {"name": "owner/wan", "revision": "main", "allow_patterns": patterns}
    assert foreign.__all__ == sorted(foreign.__all__)
