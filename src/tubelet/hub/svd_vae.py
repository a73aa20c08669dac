"""The checkpoints of Stable Video Diffusion's autoencoder, diffusers' ``AutoencoderKLTemporalDecoder``, both ways.

The encoder has the names of ``AutoencoderKL``. Their blocks mix what is before and behind the convolutions over time;
ours add a share of these, which is the same.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tubelet.hub.convolutions import framewise
from tubelet.hub.frame_blocks import frame_attention_keys, frame_res_keys, normed_conv_keys, one_scale
from tubelet.hub.keys import Entry, Family, KeyMap, renamed
from tubelet.hub.kl_vae import side_keys
from tubelet.hub.theirs import check_own, checked_config
from tubelet.vae.families.svd_vae import SVDAutoencoder, SVDAutoencoderConfig

__all__ = ["SVD_VAE", "svd_vae_config_from_diffusers", "svd_vae_config_to_diffusers", "svd_vae_keys"]

_DEFAULTS: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"],
    "block_out_channels": [64],
    "layers_per_block": 1,
    "latent_channels": 4,
    "sample_size": 32,
    "scaling_factor": 0.18215,
    "force_upcast": True,
}


def svd_vae_config_from_diffusers(config: Mapping[str, Any]) -> SVDAutoencoderConfig:
    """Our config from theirs; keys that are missing have diffusers' defaults.

    Raises:
        ValueError: keys that the class does not have, or values that make another model than `SVDAutoencoder`. Theirs
            never runs more than two blocks of the middle, so that it is only known with two at each scale.

    Example:
        >>> svd_vae_config_from_diffusers({"block_out_channels": [64], "layers_per_block": 2}).widths
        (64,)
    """
    c = checked_config(config, _DEFAULTS, {}, "AutoencoderKLTemporalDecoder")
    widths = tuple(c["block_out_channels"])
    if [*c["down_block_types"]] != ["DownEncoderBlock2D"] * len(widths):
        raise ValueError(
            f"down_block_types={c['down_block_types']!r}, but this model has a DownEncoderBlock2D for each of "
            f"{len(widths)} scales"
        )
    if c["out_channels"] != c["in_channels"]:
        raise ValueError(f"out_channels={c['out_channels']} are not the in_channels={c['in_channels']}")
    if c["layers_per_block"] != 2:
        raise ValueError(f"layers_per_block={c['layers_per_block']}, but this model has 2")
    return SVDAutoencoderConfig(
        in_channels=c["in_channels"],
        latent_channels=c["latent_channels"],
        widths=widths,
        depth=c["layers_per_block"],
        latent_std=(1 / c["scaling_factor"],) * c["latent_channels"],
        sample_size=c["sample_size"],
    )


def svd_vae_config_to_diffusers(config: SVDAutoencoderConfig) -> dict[str, Any]:
    """Their config from ours, as JSON values.

    Raises:
        ValueError: values that their class cannot have.

    Example:
        >>> from tubelet.vae.families import svd_vae
        >>> svd_vae_config_to_diffusers(svd_vae())["scaling_factor"]
        0.18215
    """
    check_own(config, {"groups": 32, "depth": 2}, "AutoencoderKLTemporalDecoder")
    scale, shift = one_scale(config.latent_mean, config.latent_std, "AutoencoderKLTemporalDecoder")
    if shift:
        raise ValueError(f"latent_mean {config.latent_mean}, but AutoencoderKLTemporalDecoder has no shift")
    return {
        "in_channels": config.in_channels,
        "out_channels": config.in_channels,
        "down_block_types": ["DownEncoderBlock2D"] * len(config.widths),
        "block_out_channels": [*config.widths],
        "layers_per_block": config.depth,
        "latent_channels": config.latent_channels,
        "sample_size": config.sample_size,
        "scaling_factor": scale,
        "force_upcast": True,
    }


def svd_vae_keys(config: SVDAutoencoderConfig) -> KeyMap:
    """Which of our tensors are which of theirs.

    Example:
        >>> from tubelet.vae.families import svd_vae
        >>> groups, _ = svd_vae_keys(svd_vae()).groups(["decoder.time.conv.bias"], "ours")
        >>> groups[0].theirs
        ('decoder.time_conv_out.bias',)
    """
    middle, block = "decoder.mid_block", "decoder.up_blocks.*"
    return KeyMap(
        (
            *framewise("encoder.moments.inner", "quant_conv"),
            *side_keys("encoder", "down_blocks", "downsamplers"),
            *framewise("decoder.embed.conv", "decoder.conv_in"),
            *_block("decoder.middle.first", f"{middle}.resnets.0"),
            *frame_attention_keys("decoder.middle.attention", f"{middle}.attentions.0"),
            *_block("decoder.middle.second", f"{middle}.resnets.1"),
            *_block("decoder.stages.*.*", f"{block}.resnets.*"),
            *framewise("decoder.stages.*.space.inner.conv", f"{block}.upsamplers.0.conv"),
            *normed_conv_keys("decoder.head", "decoder.conv_norm_out", "decoder.conv_out"),
            *renamed("decoder.time.conv", "decoder.time_conv_out"),
        )
    )


def _block(ours: str, theirs: str) -> Sequence[Entry]:
    """The block of a frame, that over time, and its share."""
    branch, temporal = f"{ours}.time.branch", f"{theirs}.temporal_res_block"
    return (
        *frame_res_keys(f"{ours}.frame", f"{theirs}.spatial_res_block"),
        *renamed(f"{branch}.0.norm", f"{temporal}.norm1"),
        *renamed(f"{branch}.0.conv.conv", f"{temporal}.conv1"),
        *renamed(f"{branch}.1.norm", f"{temporal}.norm2"),
        *renamed(f"{branch}.1.conv.conv", f"{temporal}.conv2"),
        Entry((f"{branch}.gate.inner.weight",), (f"{theirs}.time_mixer.mix_factor",)),
    )


SVD_VAE = Family(
    SVDAutoencoder,
    "AutoencoderKLTemporalDecoder",
    svd_vae_keys,
    svd_vae_config_from_diffusers,
    svd_vae_config_to_diffusers,
)
"""The adapter between :class:`tubelet.vae.families.SVDAutoencoder` and theirs. Example: ``SVD_VAE.keys(config)``."""
