"""A model comes back with the patterns and the functions it had, and a file never chooses what code runs."""

import json
from dataclasses import dataclass

import pytest
import torch
from parity import randomise

from tubelet import hub
from tubelet.attention import FrameCausal, HeadSplit, Joint, Spatial, Temporal, Window, set_pattern
from tubelet.attention.patterning import patterned
from tubelet.layout import Grid, TokenLayout
from tubelet.models import (
    DiT,
    DiTConfig,
    LatteConfig,
    LatteTransformer,
    WanConfig,
    WanTransformer,
    dit_adaln_zero,
    dit_cross_attention,
    dit_in_context,
)
from tubelet.models.video_dit import VideoDiT, VideoDiTConfig

WAN = WanConfig(dim=24, depth=3, heads=2, mlp_dim=20, latent_channels=1, text_dim=5)
SIZES = DiTConfig(dim=16, depth=2, heads=2, mlp_dim=20, latent_channels=2, classes=5, frequencies=8)


@dataclass(frozen=True)
class Near:
    """A user's pattern: known to its own code only."""

    far: int = 1

    def attends(self, q, k, head):
        return (q.coords - k.coords).abs().amax(-1) <= self.far


def specific(pattern):
    """The same with a spec, which compiled graphs may hold."""
    object.__setattr__(pattern, "spec", f'["{__name__}:Near", {pattern.far}]')
    return pattern


def own_way(config, pattern, device=None, dtype=None):
    return dit_adaln_zero(config, pattern, device, dtype)


def attended(model):
    return [module.pattern for module in patterned(model).values()]


def written(folder):
    return json.loads((folder / "config.json").read_text())


MIXED = [Window((1, 2, 2), (0, 1, 1)), Joint(), HeadSplit((Spatial(), FrameCausal(2) & Temporal()), (1, 1))]


@pytest.mark.parametrize("patterns", [[Joint()] * 3, [Window((3, 2, 2))] * 3, MIXED])
def test_patterns_return_and_the_outputs_with_them(tmp_path, patterns):
    model = randomise(WanTransformer(WAN))
    set_pattern(model, patterns)
    folder = hub.save(model, tmp_path / "wan")
    loaded = hub.load(folder)
    assert attended(loaded) == patterns
    assert len(written(folder)["patterns"]) == len(set(patterns))
    layout, prompts = TokenLayout.packed([Grid(3, 4, 4)]), TokenLayout.packed([None], [2])
    inputs = torch.randn(48, 4), layout.rows(torch.tensor([0.4]), "sample"), torch.randn(2, 5), layout, prompts
    assert torch.equal(loaded(*inputs), model.eval()(*inputs))
    bundle = hub.save_bundle(tmp_path / "all.safetensors", {"wan": model})
    assert attended(hub.load_bundle(bundle)["wan"]) == patterns
    changed = hub.load_bundle(bundle, patterns={"wan": Temporal()})["wan"]
    assert attended(changed) == [Temporal()] * 3
    again = hub.convert(folder, tmp_path / "again", source_form="tubelet", target_form="tubelet", dtype=torch.bfloat16)
    assert attended(hub.load(again)) == patterns


def test_models_of_two_patterns_and_of_patterns_in_the_config(tmp_path):
    config = LatteConfig(dim=32, depth=4, heads=2, latent_channels=1, text_dim=5)
    model = LatteTransformer(config, spatial=Window((1, 2, 2)))
    assert attended(hub.load(hub.save(model, tmp_path / "latte"))) == [Window((1, 2, 2)), Temporal()] * 2
    video = VideoDiT(VideoDiTConfig(latent_channels=4, dim=64, depth=2, heads=4, text_dim=8))
    set_pattern(video, FrameCausal())
    assert attended(hub.load(hub.save(video, tmp_path / "video"))) == [FrameCausal()] * 2


@pytest.mark.parametrize("pattern", [Near(2), specific(Near(2)), Near(2) | Joint()])
def test_a_pattern_of_ones_own_is_asked_for(tmp_path, pattern):
    folder = hub.save(WanTransformer(WAN, pattern=pattern), tmp_path / "wan")
    assert written(folder)["patterns"] == [None]
    with pytest.raises(ValueError, match="a pattern that is not tubelet's: give it as pattern="):
        hub.load(folder)
    assert attended(hub.load(folder, pattern=pattern)) == [pattern] * 3
    assert attended(hub.load(folder, pattern=MIXED)) == MIXED
    again = hub.convert(folder, tmp_path / "again", source_form="tubelet", target_form="tubelet")
    assert written(again)["patterns"] == [None]


@pytest.mark.parametrize("way", [dit_adaln_zero, dit_in_context, dit_cross_attention])
def test_conditioning_returns(tmp_path, way):
    model = randomise(DiT(SIZES, conditioning=way, pattern=Spatial()))
    folder = hub.save(model, tmp_path / "dit")
    assert written(folder).get("injected") == (
        None if way is dit_adaln_zero else {"conditioning": f"tubelet.models.{way.__name__}"}
    )
    loaded = hub.load(folder)
    assert loaded.conditioning is way
    assert attended(loaded) == [Spatial()] * 2
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    again = hub.convert(folder, tmp_path / "again", source_form="tubelet", target_form="tubelet")
    assert hub.load(again).conditioning is way


def test_a_function_of_ones_own_is_asked_for(tmp_path):
    folder = hub.save(DiT(SIZES, conditioning=own_way), tmp_path / "dit")
    with pytest.raises(ValueError, match="not tubelet's: give it as conditioning="):
        hub.load(folder)
    assert hub.load(folder, conditioning=own_way).conditioning is own_way


@pytest.mark.parametrize(
    ("note", "message"),
    [
        ({"patterns": [["os:system", "true"]]}, r"\['os:system', 'true'\] is none of tubelet's patterns"),
        ({"patterns": [["Either", ["Joint"], ["os:system", "true"]]]}, "none of tubelet's patterns"),
        ({"patterns": [["from_spec", "x"]]}, "none of tubelet's patterns"),
        ({"patterns": [["Span", 0, 1, 0, 1]]}, "no spec of a pattern"),
        ({"patterns": [["Window", [0, 1, 1]]]}, "size must be at least 1"),
        ({"patterns": ["Joint"]}, "'Joint' is none of tubelet's patterns"),
        ({"patterns": [["Joint"]] * 2}, "2 patterns, but there are 3 modules"),
        ({"patterns": {"a": 1}}, "as patterns, expected a list"),
        ({"injected": {"pattern": "tubelet.hub.save"}}, r"'tubelet\.hub\.save' as pattern is no function"),
        ({"injected": {"pattern": "os.system"}}, "no function of tubelet.models"),
        ({"injected": []}, "as injected, expected a dict"),
    ],
)
def test_a_file_chooses_among_ours_only(tmp_path, note, message):
    folder = hub.save(WanTransformer(WAN), tmp_path / "wan")
    (folder / "config.json").write_text(json.dumps(written(folder) | note))
    with pytest.raises(ValueError, match=message):
        hub.load(folder)


def test_files_without_notes_are_read(tmp_path):
    folder = hub.save(WanTransformer(WAN), tmp_path / "wan")
    description = written(folder)
    del description["patterns"]
    (folder / "config.json").write_text(json.dumps(description))
    assert attended(hub.load(folder)) == [Joint()] * 3


def test_a_subfolder_is_read(tmp_path):
    hub.save(WanTransformer(WAN), tmp_path / "both" / "wan")
    assert hub.load(tmp_path / "both", subfolder="wan").config == WAN
