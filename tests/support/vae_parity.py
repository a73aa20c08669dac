"""What the comparisons of autoencoders share: random peers, videos and latents, chunk plans."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from parity import error
from torch import Tensor, nn

from tubelet.hub import from_diffusers
from tubelet.hub.foreign import adapter
from tubelet.vae import decode_stream, encode_stream


def drawn(model: nn.Module, seed: int = 0) -> Any:
    """Every parameter random, biases and norms too; weights by their fan-in, so that activations keep their size."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        fan = parameter[0].numel() if parameter.ndim > 1 else 1
        nn.init.normal_(parameter, std=0.8 * fan**-0.5 if fan > 1 else 0.4, generator=generator)
    return model.eval()


def ours(model: Any) -> Any:
    """The same autoencoder as ours."""
    return from_diffusers(dict(model.config) | {"_class_name": type(model).__name__}, model.state_dict())


def from_theirs(vae: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors under our names."""
    return adapter("diffusers", type(vae)).keys(vae.config).to_ours(state)


def video(vae: Any, latent: tuple[int, int, int], seed: int = 0, batch: int = 2) -> Tensor:
    """Random videos in float64 of a latent size."""
    frames, height, width = vae.video_size(_grid(latent))
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, vae.config.in_channels, frames, height, width, generator=generator, dtype=torch.float64)


def latents(vae: Any, latent: tuple[int, int, int], seed: int = 0, batch: int = 2) -> Tensor:
    """Random latents in float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, vae.config.latent_channels, *latent, generator=generator, dtype=torch.float64)


def check_gradients(peer: nn.Module, vae: nn.Module, loss: Callable[[Any], Tensor], their_loss: Any) -> None:
    """Whether every weight of both has the same gradient, in float64."""
    loss(vae).backward()
    their_loss(peer).backward()
    gradients = from_theirs(vae, {name: p.grad for name, p in peer.named_parameters()})
    assert gradients.keys() == dict(vae.named_parameters()).keys()
    for name, parameter in vae.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-8, atol=1e-8, msg=name)


def encoded_in_parts(vae: Any, x: Tensor, plan: Sequence[int]) -> Tensor:
    """The means of a video that comes in clips of these lengths; the last takes what is left."""
    return torch.cat([posterior.mean for posterior in encode_stream(vae, split(x, plan))], 2)


def decoded_in_parts(vae: Any, z: Tensor, plan: Sequence[int]) -> Tensor:
    """The frames of latents that come in chunks of these lengths; the last takes what is left."""
    return torch.cat([*decode_stream(vae, split(z, plan))], 2)


def check_plan(vae: Any, x: Tensor, z: Tensor, plan: Sequence[int], bound: float) -> None:
    """Whether these chunks of a video and of latents give what the wholes give."""
    with torch.no_grad():
        assert error(encoded_in_parts(vae, x, plan), vae.encode(x).mean) <= bound
        assert error(decoded_in_parts(vae, z, plan), vae.decode(z)) <= bound


def split(x: Tensor, plan: Sequence[int]) -> list[Tensor]:
    """Clips of these lengths, and one of what is left."""
    parts, left = [], x
    for frames in plan:
        parts.append(left[:, :, :frames])
        left = left[:, :, frames:]
    return [part for part in (*parts, left) if part.shape[2]]


def _grid(latent: tuple[int, int, int]) -> Any:
    from tubelet.layout import Grid

    return Grid(*latent)


def listed(config: Any) -> dict[str, Any]:
    """Their config with the types of JSON."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in config.items() if not k.startswith("_")}
