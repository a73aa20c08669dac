"""Several models in one file."""

from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tubelet import hub
from tubelet.models.video_dit import VideoDiT, VideoDiTConfig
from tubelet.text import WordEncoder, WordEncoderConfig


@dataclass(frozen=True)
class ScaleConfig:
    width: int = 3


class Scale(nn.Module):
    def __init__(self, config: ScaleConfig, *, device=None, dtype=None) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.rand(config.width, device=device, dtype=dtype))
        self.register_buffer("steps", torch.tensor(5, device=device))


@pytest.fixture
def models():
    dit = VideoDiT(VideoDiTConfig(latent_channels=4, dim=32, depth=1, heads=1, text_dim=8))
    for p in dit.parameters():
        nn.init.normal_(p)
    return {"dit": dit, "text": WordEncoder(WordEncoderConfig(words=("a", "seven"), dim=8))}


def test_models_return_with_classes_configs_and_metadata(tmp_path, models):
    file = hub.save_bundle(tmp_path / "all.safetensors", models, metadata={"seed": 0, "metrics": {"psnr_db": 25.5}})
    loaded = hub.load_bundle(file)
    assert list(loaded) == ["dit", "text"]
    for name, model in models.items():
        assert type(loaded[name]) is type(model)
        assert loaded[name].config == model.config
        assert not loaded[name].training
        for key, value in model.state_dict().items():
            assert torch.equal(loaded[name].state_dict()[key], value), key
    assert hub.read_metadata(file) == {"seed": 0, "metrics": {"psnr_db": 25.5}}
    assert [f.name for f in tmp_path.iterdir()] == ["all.safetensors"]


def test_stored_in_half_the_bytes_and_read_as_float32(tmp_path, models):
    whole = hub.save_bundle(tmp_path / "whole", models).stat().st_size
    file = hub.save_bundle(tmp_path / "half", models, dtype=torch.bfloat16)
    parameters = sum(p.numel() for model in models.values() for p in model.parameters())
    assert whole - file.stat().st_size == pytest.approx(2 * parameters, rel=0.01)
    assert models["dit"].embed.weight.dtype == torch.float32
    loaded = hub.load_bundle(file, dtype=torch.float32)["dit"]
    expected = models["dit"].embed.weight.to(torch.bfloat16).float()
    assert loaded.embed.weight.dtype == torch.float32
    assert torch.equal(loaded.embed.weight, expected)


def test_own_classes_are_passed_by_name_and_integers_keep_their_dtype(tmp_path, models):
    file = hub.save_bundle(tmp_path / "b", {"scale": Scale(ScaleConfig()), **models}, dtype=torch.float16)
    with pytest.raises(ValueError, match="not one of tubelet's"):
        hub.load_bundle(file)
    scale = hub.load_bundle(file, {"scale": Scale}, dtype=torch.float32)["scale"]
    assert scale.steps.item() == 5
    assert scale.steps.dtype == torch.int64
    with pytest.raises(ValueError, match=r"classes names \['vae'\], but .* holds \['dit', 'scale', 'text'\]"):
        hub.load_bundle(file, {"vae": Scale})


def test_a_bundle_of_integers_is_refused(tmp_path, models):
    with pytest.raises(ValueError, match=r"dtype must be floating-point, got torch\.int8"):
        hub.save_bundle(tmp_path / "b", models, dtype=torch.int8)


def test_names_that_begin_alike_stay_apart(tmp_path):
    models = {"a": Scale(ScaleConfig(2)), "a_b": Scale(ScaleConfig(4))}
    file = hub.save_bundle(tmp_path / "b", models)
    assert set(load_file(file)) == {"a.weight", "a.steps", "a_b.weight", "a_b.steps"}
    loaded = hub.load_bundle(file, {"a": Scale, "a_b": Scale})
    assert torch.equal(loaded["a"].weight, models["a"].weight)
    assert torch.equal(loaded["a_b"].weight, models["a_b"].weight)


def test_tensors_that_do_not_fit_are_named(tmp_path):
    file = hub.save_bundle(tmp_path / "b", {"a": Scale(ScaleConfig(2))})

    class Wider(Scale):
        def __init__(self, config: ScaleConfig, *, device=None, dtype=None) -> None:
            super().__init__(ScaleConfig(config.width + 1), device=device, dtype=dtype)

    with pytest.raises(ValueError, match=r"weight is \(2,\), expected \(3,\)"):
        hub.load_bundle(file, {"a": Wider})


def test_a_failed_save_keeps_the_old_file(tmp_path, models):
    file = hub.save_bundle(tmp_path / "b", models)
    before = file.read_bytes()
    with pytest.raises(ValueError, match="metadata must hold finite JSON values"):
        hub.save_bundle(file, models, metadata={"loss": float("nan")})
    with pytest.raises(ValueError, match=r"must have a dataclass instance as .config"):
        hub.save_bundle(file, {"linear": nn.Linear(1, 1)})
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("{", "is damaged"),
        ("[]", r"must describe a model, got \[\]"),
        ('{"format_version": 1, "models": [], "metadata": {}}', r"has \[\] as models, expected a dict"),
        ('{"format_version": 1, "models": {"a": 3}, "metadata": {}}', "b: a must describe a model, got 3"),
    ],
)
def test_a_damaged_description_names_the_file(tmp_path, header, message):
    save_file({"x": torch.zeros(1)}, tmp_path / "b", metadata={"tubelet_bundle": header})
    with pytest.raises(ValueError, match=message) as caught:
        hub.load_bundle(tmp_path / "b")
    assert str(tmp_path / "b") in str(caught.value)


def test_bad_names_and_other_files(tmp_path, models):
    with pytest.raises(ValueError, match=r"models must be named by identifiers, got \['a.b'\]"):
        hub.save_bundle(tmp_path / "b", {"a.b": models["text"]})
    (tmp_path / "text").write_text("neither weights nor a bundle")
    with pytest.raises(ValueError, match="is no safetensors file"):
        hub.load_bundle(tmp_path / "text")
    save_file({"x": torch.zeros(1)}, tmp_path / "plain")
    with pytest.raises(ValueError, match="format_version None, expected 1"):
        hub.load_bundle(tmp_path / "plain")
    with pytest.raises(FileNotFoundError):
        hub.load_bundle(tmp_path / "none")
