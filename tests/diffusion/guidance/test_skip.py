"""Models with blocks skipped: against diffusers' hooks on mapped weights, and what they share with the whole model."""

from collections.abc import Callable
from typing import Any

import cogvideoxs
import mochis
import pytest
import torch
import wans
from diffusers.hooks import LayerSkipConfig, apply_layer_skip
from parity import error
from torch import nn

from tubelet.blocks import Branch, TransformerBlock
from tubelet.diffusion import Skip, cfg, one_row, replaced, skip_layer, skipped
from tubelet.hub import from_diffusers
from tubelet.layout import Grid, TokenLayout
from tubelet.models import VideoDiT, VideoDiTConfig


def wan() -> tuple[Any, Any]:
    theirs = wans.peer("image")
    return theirs, wans.question("image", theirs)


def mochi() -> tuple[Any, Any]:
    theirs = mochis.peer(1)
    return theirs, mochis.question(theirs, 1)


def cogvideox() -> tuple[Any, Any]:
    theirs = cogvideoxs.peer("rotary")
    return theirs, cogvideoxs.question("rotary", theirs)


@pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning")  # of mochi's rotations
@pytest.mark.parametrize("make", [wan, mochi, cogvideox])
def test_skipped_blocks_equal_diffusers(make: Callable[[], tuple[Any, Any]]) -> None:
    """One stream of tokens or several, with mapped random weights."""
    theirs, asked = make()
    config, state = dict(theirs.config), {name: p.clone() for name, p in theirs.state_dict().items()}
    ours = from_diffusers({"_class_name": type(theirs).__name__, **config}, state)
    whole = asked.ours(ours)
    worse = skipped(ours, ["blocks.0"])
    assert error(whole, asked.theirs(theirs)) <= 1e-5
    apply_layer_skip(theirs, LayerSkipConfig(indices=[0]))
    assert error(asked.ours(worse), asked.theirs(theirs)) <= 1e-5
    assert error(asked.ours(worse), whole) > 1e-3
    assert torch.equal(asked.ours(ours), whole)


def model() -> VideoDiT:
    made = VideoDiT(VideoDiTConfig(latent_channels=4, dim=32, depth=3, heads=2, text_dim=5), dtype=torch.float64)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    return made


def ask(made: nn.Module, x: torch.Tensor) -> torch.Tensor:
    layout, text = TokenLayout.packed([Grid(1, 2, 2)]), TokenLayout.packed([None], [2])
    words = torch.linspace(-1, 1, 10, dtype=torch.float64).view(2, 5)
    return made(x, one_row(torch.tensor(0.5, dtype=torch.float64)), words, layout, text)


X = torch.linspace(-1, 1, 16, dtype=torch.float64).view(4, 4)


def test_blocks_and_branches_are_passed_by_and_all_else_is_shared() -> None:
    whole = model()
    less = skipped(whole, ["blocks.1", "blocks.2.branches.0"])
    by_hand = model()
    by_hand.load_state_dict(whole.state_dict())
    by_hand.blocks[1] = Skip()
    by_hand.blocks[2].branches[0] = Skip()
    assert torch.equal(ask(less, X), ask(by_hand, X))
    assert type(whole.blocks[1]) is not Skip and type(whole.blocks[2].branches[0]) is not Skip
    own, shared = dict(whole.named_parameters()), dict(less.named_parameters())
    assert shared.keys() < own.keys() and all(shared[name] is own[name] for name in shared)
    assert {name.rsplit(".branches")[0] for name in own.keys() - shared.keys()} == {"blocks.1", "blocks.2"}
    with torch.no_grad():
        whole.embed.weight.mul_(2)
        by_hand.embed.weight.mul_(2)
    assert torch.equal(ask(less, X), ask(by_hand, X))


def test_training_reaches_the_shared_parameters() -> None:
    whole = model()
    ask(skipped(whole, ["blocks.1"]), X).square().sum().backward()
    assert whole.blocks[0].branches[2].inner.up.weight.grad is not None
    assert all(p.grad is None for p in whole.blocks[1].parameters())


def test_skip_layer_guidance_of_a_model() -> None:
    whole = model()
    less = skipped(whole, ["blocks.1"])
    c, s = (lambda x, t, m=m: ask(m, x) for m in (whole, less))
    u = lambda x, t: ask(whole, 0 * x)  # noqa: E731
    got = skip_layer(cfg(c, u, 5.0), c, s, 2.8)(X, one_row(torch.tensor(0.5, dtype=torch.float64)))
    full, none, part = ask(whole, X), ask(whole, 0 * X), ask(less, X)
    torch.testing.assert_close(got, none + 5 * (full - none) + 2.8 * (full - part), rtol=1e-11, atol=1e-11)


def test_other_modules_take_their_place() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU(), nn.Linear(2, 2)))
    other = replaced(net, {"1.0": nn.Tanh(), "0": nn.Identity()})
    x = torch.randn(3, 2)
    assert torch.equal(other(x), net[1][1](x.tanh()))
    assert torch.equal(net(x), net[1][1](net[0](x).relu()))
    assert torch.equal(replaced(net, {})(x), net(x))


@pytest.mark.graph
def test_both_compile_whole_and_side_by_side() -> None:
    block = lambda: TransformerBlock([Branch(nn.Linear(4, 4), nn.LayerNorm(4))])  # noqa: E731
    whole = nn.Sequential(block(), block(), block()).double()
    less = skipped(whole, ["0", "2.branches.0"])
    for made in (whole, less):
        torch.testing.assert_close(torch.compile(made, fullgraph=True, backend="eager")(X), made(X))
    torch.testing.assert_close(less(X), whole[1](X))


def test_bad_input_is_refused() -> None:
    for wrong in ("blocks.1", []):
        with pytest.raises(ValueError, match="names must list submodules"):
            skipped(model(), wrong)
    with pytest.raises(ValueError, match=r"names \['blocks.3'\] are no submodules of VideoDiT; it has \['embed', "):
        skipped(model(), ["blocks.1", "blocks.3"])
    with pytest.raises(ValueError, match=r"names \[''\] are no submodules"):
        replaced(model(), {"": Skip()})
