"""One model in one folder: parity with other readers, strictness, atomicity."""

import json
import os
import pickle
import stat
from dataclasses import dataclass

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tubelet import hub
from tubelet.models.video_dit import VideoDiT, VideoDiTConfig


@dataclass(frozen=True)
class StackConfig:
    width: int = 8
    depths: tuple[int, ...] = (1, 2)


class Stack(nn.Module):
    def __init__(self, config: StackConfig, *, device=None, dtype=None) -> None:
        super().__init__()
        self.config = config
        on = {"device": device, "dtype": dtype}
        self.layers = nn.ModuleList(nn.Linear(config.width, config.width, **on) for _ in range(sum(config.depths)))
        self.register_buffer("scale", torch.full((1,), 2.0, **on))


@pytest.fixture
def model():
    return Stack(StackConfig(8, (2, 3)))


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_one_file_holds_what_plain_safetensors_reads(tmp_path, model):
    folder = hub.save(model, tmp_path / "model", metadata={"seed": 3, "loss": [0.5]})
    assert sorted(f.name for f in folder.iterdir()) == ["config.json", "model.safetensors"]
    tensors = load_file(folder / "model.safetensors")
    assert set(tensors) == set(model.state_dict())
    assert all(torch.equal(tensors[name], value) for name, value in model.state_dict().items())
    written = json.loads((folder / "config.json").read_text())
    assert written["config"] == {"width": 8, "depths": [2, 3]}
    assert written["format_version"] == 1
    assert hub.read_metadata(folder) == {"seed": 3, "loss": [0.5]}


def test_load_gives_equal_weights_of_their_own(tmp_path, model):
    folder = hub.save(model, tmp_path / "model")
    loaded = hub.load(folder, Stack)
    assert same(loaded, model)
    assert loaded.config == model.config
    assert not loaded.training
    with torch.no_grad():
        loaded.layers[0].weight.zero_()
    assert same(hub.load(folder, Stack), model)


def test_shards_split_and_join_and_the_reference_loader_agrees(tmp_path, model):
    folder = hub.save(model, tmp_path / "model", max_shard_size=700)
    shards = sorted(folder.glob("model-*-of-*.safetensors"))
    assert len(shards) > 2
    assert all(s.stat().st_size < 700 + 1000 for s in shards)
    assert same(hub.load(folder, Stack), model)
    reference = Stack(model.config)
    huggingface_hub.load_torch_model(reference, folder, safe=True, strict=True)
    assert same(reference, model)
    hub.save(model, folder)
    assert sorted(f.name for f in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_dtype_and_device(tmp_path, model):
    folder = hub.save(model.to(torch.bfloat16), tmp_path / "model")
    assert hub.load(folder, Stack).scale.dtype == torch.bfloat16
    wide = hub.load(folder, Stack, dtype=torch.float64, device="cpu")
    assert {t.dtype for t in wide.state_dict().values()} == {torch.float64}
    assert torch.equal(wide.layers[1].weight, model.layers[1].weight.double())
    with torch.device("meta"):
        assert hub.load(folder, Stack).scale.device.type == "cpu"


def test_a_real_backbone_returns_without_naming_its_class(tmp_path):
    config = VideoDiTConfig(latent_channels=4, dim=64, depth=2, heads=4, text_dim=8, patch=(1, 2, 2), mlp_ratio=2.0)
    model = VideoDiT(config)
    loaded = hub.load(hub.save(model, tmp_path / "dit", max_shard_size="100KB"))
    assert type(loaded) is VideoDiT
    assert loaded.config == config
    assert same(loaded, model)
    assert loaded.state_dict().keys() == model.state_dict().keys()


def test_a_class_of_ones_own_must_be_passed(tmp_path, model):
    folder = hub.save(model, tmp_path / "model")
    with pytest.raises(ValueError, match="not one of tubelet's; pass cls="):
        hub.load(folder)


def test_misfits_are_one_error(tmp_path, model):
    folder = hub.save(model, tmp_path / "model")
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"width": 8', '"width": 9'))
    with pytest.raises(ValueError, match="in 10 places") as caught:
        hub.load(folder, Stack)
    assert "layers.4.weight is (8, 8), expected (9, 9)" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "format_version 2, expected 1"),
        ({"format_version": None}, "format_version None, expected 1"),
        ({"note": "x"}, "has keys .*'note'"),
        ({"config": {"width": 8, "deep": 1}}, r"unknown keys \['deep'\]"),
        ({"config": {"width": "8"}}, "config.width must be int"),
    ],
)
def test_config_is_strict(tmp_path, model, changes, message):
    folder = hub.save(model, tmp_path / "model")
    data = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(data | changes))
    with pytest.raises(ValueError, match=message):
        hub.load(folder, Stack)


def test_what_is_not_there_is_said(tmp_path, model):
    with pytest.raises(FileNotFoundError, match="neither a folder nor a repository's name"):
        hub.load(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json"):
        hub.load(tmp_path)
    folder = hub.save(model, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no weights file 'model\.safetensors'"):
        hub.load(folder, Stack)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", b"{", r"config\.json is damaged"),
        ("config.json", b"\xff\xfe", r"config\.json is damaged .* codec"),
        ("config.json", b"[1]", r"config\.json must describe a model, got \[1\]"),
        ("model.safetensors", b"", r"model\.safetensors is no safetensors file"),
        ("model.safetensors", b"\xff" * 64, r"model\.safetensors is no safetensors file"),
        ("model.safetensors.index.json", b"{", r"index\.json is damaged"),
        ("model.safetensors.index.json", b"{}", r"index\.json is damaged .* lacks 'weight_map'"),
        ("model.safetensors.index.json", b'{"weight_map": [1]}', r"index\.json is damaged"),
    ],
)
def test_a_damaged_folder_names_the_file_and_the_cause(tmp_path, model, file, content, message):
    folder = hub.save(model, tmp_path / "model")
    (folder / file).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        hub.load(folder, Stack)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": [8]}, r"config\.json has \[8\] as config, expected a dict"),
        ({"metadata": "x"}, r"config\.json has 'x' as metadata, expected a dict"),
        ({"_class": 3}, r"config\.json has 3 as _class, expected a str"),
        ({"config": {"width": "8"}}, r"model: config\.width must be int"),
    ],
)
def test_a_description_of_other_types_names_the_file(tmp_path, model, changes, message):
    folder = hub.save(model, tmp_path / "model")
    data = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(data | changes))
    with pytest.raises(ValueError, match=message):
        hub.load(folder, Stack)


def test_the_name_that_the_format_keeps_is_refused(tmp_path, model):
    model.register_buffer("__metadata__", torch.zeros(1))
    with pytest.raises(ValueError, match="Stack has a tensor named '__metadata__'"):
        hub.save(model, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_model_of_parts_is_sent_to_save_bundle(tmp_path):
    class Parts(torch.nn.Module):
        def parts(self):
            return {}

    with pytest.raises(ValueError, match=r"use save_bundle\(path, model\.parts\(\)\)"):
        hub.save(Parts(), tmp_path / "model")


def test_an_index_cannot_point_outside_nor_at_pickles(tmp_path, model):
    folder = hub.save(model, tmp_path / "model")
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    (folder / "model.bin").write_bytes(pickle.dumps({}))
    for name in ("../model.safetensors", str(tmp_path / "model.safetensors"), "model.bin"):
        index = {"weight_map": {"scale": name}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(FileNotFoundError, match="holds no weights file"):
            hub.load(folder, Stack)


def test_a_failed_save_keeps_the_old_model_and_leaves_nothing(tmp_path, model, monkeypatch):
    folder = hub.save(model, tmp_path / "model")
    other = Stack(model.config)
    rename = os.rename

    def fail_second(source, target):
        if str(target) == str(folder) and ".tmp-" in str(source):
            raise OSError("disk full")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail_second)
    with pytest.raises(OSError, match="disk full"):
        hub.save(other, folder)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="metadata must hold finite JSON values"):
        hub.save(other, folder, metadata={"a": object()})
    assert same(hub.load(folder, Stack), model)
    assert [f.name for f in tmp_path.iterdir()] == ["model"]
    assert same(hub.load(hub.save(other, folder), Stack), other)
    assert [f.name for f in tmp_path.iterdir()] == ["model"]


def test_a_folder_with_other_files_is_not_replaced(tmp_path, model):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"would be replaced, but it also holds \['thesis.txt'\]"):
        hub.save(model, tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == ["thesis.txt"]


def test_files_are_readable_by_whom_new_files_are(tmp_path, model):
    (tmp_path / "plain").touch()
    mode = stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    for file in hub.save(model, tmp_path / "model", max_shard_size=700).iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == mode, file


def test_a_repository_is_fetched_by_pattern(tmp_path, model, monkeypatch):
    folder = hub.save(model, tmp_path / "snapshot")
    asked = []

    def snapshot_download(repo_id, **options):
        asked.append((repo_id, options))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path)
    assert same(hub.load("someone/stack", Stack, revision="v1"), model)
    assert asked == [("someone/stack", {"revision": "v1", "allow_patterns": ["*.safetensors", "*.json"]})]
    with pytest.raises(FileNotFoundError):
        hub.load("https://example.org/a/b")
    assert len(asked) == 1
