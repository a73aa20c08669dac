"""Which classes a file may name, and how models are built from tensors."""

import sys
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from tubelet.hub.weights import build, describe, gather, resolve
from tubelet.models.video_dit import VideoDiT, VideoDiTConfig
from tubelet.text import WordEncoder


@dataclass(frozen=True)
class ToyConfig:
    dim: int = 3


class Toy(nn.Module):
    """Tied weights, an integer buffer, and a buffer that is not stored."""

    def __init__(self, config: ToyConfig, *, device=None, dtype=None) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Linear(config.dim, 4, bias=False, device=device, dtype=dtype)
        self.head = nn.Linear(config.dim, 4, bias=False, device=device, dtype=dtype)
        self.head.weight = self.embed.weight
        self.frozen = nn.Parameter(torch.zeros(2, device=device, dtype=dtype), requires_grad=False)
        self.register_buffer("count", torch.tensor(7, device=device))
        self.register_buffer("table", torch.arange(3.0, device=device), persistent=False)


def rebuild(model, **options):
    tensors = gather(model)
    shapes = {name: tuple(t.shape) for name, t in tensors.items()}
    return build(
        type(model), "memory", describe(model), shapes, tensors.__getitem__, options.get("device"), options.get("dtype")
    )


def test_ties_unsaved_buffers_and_flags_come_back():
    model = Toy(ToyConfig())
    model.count.fill_(9)
    assert list(gather(model)) == ["frozen", "count", "embed.weight"]
    loaded = rebuild(model, dtype=torch.bfloat16)
    assert loaded.head.weight is loaded.embed.weight
    assert torch.equal(loaded.embed.weight, model.embed.weight.to(torch.bfloat16))
    assert loaded.count.item() == 9
    assert loaded.count.dtype == torch.int64
    assert torch.equal(loaded.table, torch.arange(3.0))
    assert loaded.embed.weight.requires_grad
    assert not loaded.frozen.requires_grad
    assert not loaded.training
    assert all(t.device.type == "cpu" for t in (*loaded.parameters(), *loaded.buffers()))


def test_a_model_without_unsaved_buffers_is_built_on_meta_only():
    devices = []

    class Plain(nn.Module):
        def __init__(self, config: ToyConfig, *, device=None, dtype=None) -> None:
            super().__init__()
            devices.append(str(device))
            self.config = config
            self.linear = nn.Linear(config.dim, 4, device=device, dtype=dtype)

    model = Plain(ToyConfig())
    random = torch.get_rng_state()
    loaded = rebuild(model)
    assert devices == ["None", "meta"]
    assert torch.equal(loaded.linear.weight, model.linear.weight)
    assert loaded.linear.weight.data_ptr() != model.linear.weight.data_ptr()
    assert torch.equal(torch.get_rng_state(), random)


def test_misfits_are_listed_in_one_error():
    model = Toy(ToyConfig())
    shapes = {"embed.weight": (4, 5), "count": (), "other": (1,)}
    with pytest.raises(ValueError, match="do not fit Toy in 3 places") as caught:
        build(Toy, "toy.json", describe(model), shapes, lambda name: torch.empty(0), None, None)
    message = str(caught.value)
    for part in ("missing frozen (2,)", "unexpected other (1,)", "embed.weight is (4, 5), expected (4, 3)"):
        assert part in message


def test_names_are_the_shortest_public_path(monkeypatch):
    assert resolve("tubelet.text.WordEncoder") is WordEncoder
    assert resolve("tubelet.models.video_dit.VideoDiT") is VideoDiT
    model = VideoDiT(VideoDiTConfig(latent_channels=4, dim=32, depth=1, heads=1, text_dim=8), device="meta")
    package = sys.modules["tubelet.models"]
    monkeypatch.delattr(package, "VideoDiT", raising=False)
    assert describe(model)["_class"] == "tubelet.models.video_dit.VideoDiT"
    monkeypatch.setattr(package, "VideoDiT", VideoDiT, raising=False)
    assert describe(model)["_class"] == "tubelet.models.VideoDiT"
    assert resolve("tubelet.models.VideoDiT") is VideoDiT


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("os.system", "not one of tubelet's"),
        ("torch.nn.Linear", "not one of tubelet's"),
        ("tubelet_evil.Model", "not one of tubelet's"),
        ("Model", "not one of tubelet's"),
        ("tubelet.text.words.nn", "no nn.Module of tubelet's"),
        ("tubelet.models.video_dit.RMSNorm.forward", "does not exist"),
        ("tubelet.text.words.nn.Linear", "does not exist"),
        ("tubelet.models.video_dit.nn", "no nn.Module of tubelet's"),
        ("tubelet.models.video_dit.VideoDiTConfig", "no nn.Module of tubelet's"),
        ("tubelet.hub.save", "no nn.Module of tubelet's"),
        ("tubelet.models.Missing", "does not exist"),
        ("tubelet.missing.Model", "does not exist"),
    ],
)
def test_a_file_may_name_only_our_modules(name, message):
    with pytest.raises(ValueError, match=message):
        resolve(name)


def test_a_class_of_another_package_reached_through_ours_is_refused(monkeypatch):
    monkeypatch.setattr(sys.modules["tubelet.text"], "Linear", nn.Linear, raising=False)
    with pytest.raises(ValueError, match=r"no nn.Module of tubelet's"):
        resolve("tubelet.text.Linear")


def test_models_without_a_dataclass_config_are_refused():
    with pytest.raises(ValueError, match=r"Linear must have a dataclass instance as .config, got None"):
        describe(nn.Linear(1, 1))
    with pytest.raises(ValueError, match="must annotate its argument config with a dataclass"):
        build(nn.Linear, "linear.json", {"config": {}}, {}, lambda name: torch.empty(0), None, None)
