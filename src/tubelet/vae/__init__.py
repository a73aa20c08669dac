"""Video autoencoders: causal 3-D convolutions with explicit state, an autoencoder of them, its posterior and losses.

Videos ``(b, c, T, H, W)`` in [-1, 1] and latents ``(b, z, t, h, w)`` with T = 1 + 4k frames for t = 1 + k latent frames
(the factors are configurable); an image is a video of one frame. Nothing is cached in a module: whoever streams a video
carries the state from one call to the next, so any number of streams can share one model.
"""

from tubelet.vae.autoencoder import CausalAutoencoder
from tubelet.vae.bicubic import bicubic_code
from tubelet.vae.blocks import CausalResBlock, ChannelNorm, Downsample, FrameGroups, FrameUngroups, Upsample
from tubelet.vae.causal import CausalConv3d, State, copies, zeros
from tubelet.vae.cells import CellsToChannels, ChannelsToCells, TileChannels
from tubelet.vae.chains import Chain, Guided, NormedConv, PerFrame, Residual, SkipFrames
from tubelet.vae.clips import Around, ClipConv3d, CopyFrames, EveryFrame, FramesOfChannels
from tubelet.vae.coders import Decoder, Encoder, Stage
from tubelet.vae.config import CausalAutoencoderConfig, digits
from tubelet.vae.factors import Factors
from tubelet.vae.features import FourierFeatures
from tubelet.vae.frame_attention import CausalFrameAttention, FrameAttention, TimeAttention
from tubelet.vae.gates import SigmoidGate
from tubelet.vae.group_norms import FrameGroupNorm, SpatialNorm
from tubelet.vae.leads import Lead
from tubelet.vae.linear_attention import MultiscaleLinearAttention
from tubelet.vae.losses import kl_loss, reconstruction_loss
from tubelet.vae.memory import predicted_peak
from tubelet.vae.noise import FrameNoise
from tubelet.vae.over_channels import OverChannels
from tubelet.vae.plan import DecodePlan, plan_decode
from tubelet.vae.pointwise import Affine, SiluGate, SoftClamp
from tubelet.vae.posterior import DiagonalGaussian, Point
from tubelet.vae.reach import Reach, decoder_reach, encoder_reach
from tubelet.vae.repeats import RepeatConv3d, RepeatFrames, convolve_repeated
from tubelet.vae.scales import DoubleSpace, DoubleTime, HalveSpace, HalveTime, MeanTime
from tubelet.vae.shortcuts import Depatch, MeanShortcut, Patch, RepeatShortcut
from tubelet.vae.shuffles import PointwiseUp, ShuffleUp
from tubelet.vae.splitting import Split, split_decoder, split_encoder
from tubelet.vae.statistics import ChannelCovariance, ChannelStatistics
from tubelet.vae.streaming import StreamingAutoencoder, decode_stream, encode_stream
from tubelet.vae.tiling import decode_tiled, encode_tiled
from tubelet.vae.timed import ModulatedConv, ShiftsAndScales, TimedBlock, TimedDecoder, TimedHead, TimedStage
from tubelet.vae.video import AutoencoderSizes, Chunks, VideoAutoencoder
from tubelet.vae.wavelets import BandsToCells, CellsToBands

__all__ = [
    "Affine",
    "Around",
    "AutoencoderSizes",
    "BandsToCells",
    "CausalAutoencoder",
    "CausalAutoencoderConfig",
    "CausalConv3d",
    "CausalFrameAttention",
    "CausalResBlock",
    "CellsToBands",
    "CellsToChannels",
    "Chain",
    "ChannelCovariance",
    "ChannelNorm",
    "ChannelStatistics",
    "ChannelsToCells",
    "Chunks",
    "ClipConv3d",
    "CopyFrames",
    "DecodePlan",
    "Decoder",
    "Depatch",
    "DiagonalGaussian",
    "DoubleSpace",
    "DoubleTime",
    "Downsample",
    "Encoder",
    "EveryFrame",
    "Factors",
    "FourierFeatures",
    "FrameAttention",
    "FrameGroupNorm",
    "FrameGroups",
    "FrameNoise",
    "FrameUngroups",
    "FramesOfChannels",
    "Guided",
    "HalveSpace",
    "HalveTime",
    "Lead",
    "MeanShortcut",
    "MeanTime",
    "ModulatedConv",
    "MultiscaleLinearAttention",
    "NormedConv",
    "OverChannels",
    "Patch",
    "PerFrame",
    "Point",
    "PointwiseUp",
    "Reach",
    "RepeatConv3d",
    "RepeatFrames",
    "RepeatShortcut",
    "Residual",
    "ShiftsAndScales",
    "ShuffleUp",
    "SigmoidGate",
    "SiluGate",
    "SkipFrames",
    "SoftClamp",
    "SpatialNorm",
    "Split",
    "Stage",
    "State",
    "StreamingAutoencoder",
    "TileChannels",
    "TimeAttention",
    "TimedBlock",
    "TimedDecoder",
    "TimedHead",
    "TimedStage",
    "Upsample",
    "VideoAutoencoder",
    "bicubic_code",
    "convolve_repeated",
    "copies",
    "decode_stream",
    "decode_tiled",
    "decoder_reach",
    "digits",
    "encode_stream",
    "encode_tiled",
    "encoder_reach",
    "kl_loss",
    "plan_decode",
    "predicted_peak",
    "reconstruction_loss",
    "split_decoder",
    "split_encoder",
    "zeros",
]
