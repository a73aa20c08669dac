"""Video autoencoders of the open models, each one file of the blocks of :mod:`tubelet.vae`."""

from tubelet.vae.families.allegro_vae import AllegroAutoencoder, AllegroAutoencoderConfig, allegro_vae
from tubelet.vae.families.cogvideox_vae import (
    CogVideoXAutoencoder,
    CogVideoXAutoencoderConfig,
    cogvideox_vae_2b,
    cogvideox_vae_5b,
)
from tubelet.vae.families.cosmos_vae import CosmosAutoencoder, CosmosAutoencoderConfig, cosmos_vae
from tubelet.vae.families.dc_vae import DCAutoencoder, DCAutoencoderConfig, dc_vae_f32, dc_vae_f64
from tubelet.vae.families.hunyuan_vae import HunyuanAutoencoder, HunyuanAutoencoderConfig, hunyuan_vae
from tubelet.vae.families.kl_vae import KLAutoencoder, KLAutoencoderConfig, kl_f8
from tubelet.vae.families.ltx_vae import LTXAutoencoder, LTXAutoencoderConfig, ltx_vae_0_9, ltx_vae_0_9_1, ltx_vae_0_9_5
from tubelet.vae.families.magvit_vae import MagvitAutoencoder, MagvitAutoencoderConfig, magvit_vae
from tubelet.vae.families.mochi_vae import MochiAutoencoder, MochiAutoencoderConfig, mochi_vae
from tubelet.vae.families.principal_vae import (
    PrincipalAutoencoder,
    PrincipalAutoencoderConfig,
    principal_vae,
    start_from,
)
from tubelet.vae.families.svd_vae import SVDAutoencoder, SVDAutoencoderConfig, svd_vae
from tubelet.vae.families.tiny_vae import TinyAutoencoder, TinyAutoencoderConfig, tiny_vae
from tubelet.vae.families.walt_vae import WaltAutoencoder, WaltAutoencoderConfig, walt_vae
from tubelet.vae.families.wan_vae import WanAutoencoder, WanAutoencoderConfig, wan_vae_2_1, wan_vae_2_2

__all__ = [
    "AllegroAutoencoder",
    "AllegroAutoencoderConfig",
    "CogVideoXAutoencoder",
    "CogVideoXAutoencoderConfig",
    "CosmosAutoencoder",
    "CosmosAutoencoderConfig",
    "DCAutoencoder",
    "DCAutoencoderConfig",
    "HunyuanAutoencoder",
    "HunyuanAutoencoderConfig",
    "KLAutoencoder",
    "KLAutoencoderConfig",
    "LTXAutoencoder",
    "LTXAutoencoderConfig",
    "MagvitAutoencoder",
    "MagvitAutoencoderConfig",
    "MochiAutoencoder",
    "MochiAutoencoderConfig",
    "PrincipalAutoencoder",
    "PrincipalAutoencoderConfig",
    "SVDAutoencoder",
    "SVDAutoencoderConfig",
    "TinyAutoencoder",
    "TinyAutoencoderConfig",
    "WaltAutoencoder",
    "WaltAutoencoderConfig",
    "WanAutoencoder",
    "WanAutoencoderConfig",
    "allegro_vae",
    "cogvideox_vae_2b",
    "cogvideox_vae_5b",
    "cosmos_vae",
    "dc_vae_f32",
    "dc_vae_f64",
    "hunyuan_vae",
    "kl_f8",
    "ltx_vae_0_9",
    "ltx_vae_0_9_1",
    "ltx_vae_0_9_5",
    "magvit_vae",
    "mochi_vae",
    "principal_vae",
    "start_from",
    "svd_vae",
    "tiny_vae",
    "walt_vae",
    "wan_vae_2_1",
    "wan_vae_2_2",
]
