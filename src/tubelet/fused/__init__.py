"""Fused kernels in a finished model: an explicit transform with a filter, and its way back.

``use_kernels`` changes how some kinds of module compute, never what they hold: parameters, buffers, submodules and
state-dict keys stay as they are, so checkpoints, optimisers, PEFT and EMA copies do not notice.

- A :class:`tubelet.blocks.Branch`: gate + residual; with a modulation and a plain layer or RMS norm: norm + modulate.
- A :class:`tubelet.blocks.TransformerBlock`: the end of a branch together with the norm + modulate of the next; of a
  :class:`tubelet.streams.MultiStreamBlock` the same in each stream.
- A :class:`tubelet.attention.Attention`: qk-norm + RoPE; cross-attention with norms of queries and keys: these.
- An ``nn.Linear``: oneDNN's product on the CPU.
- A :class:`tubelet.norms.LayerNorm`: PyTorch's kernel of two precisions on the CPU.
- A :class:`tubelet.vae.chains.NormedConv`: norm + SiLU, written behind the frames before, where its convolution reads.
- A :class:`tubelet.mlp.MLP` or :class:`tubelet.attention.ParallelAttention`: its first projection and its activation.
"""

from tubelet.fused._layers import FusedLayerNorm, FusedLinear
from tubelet.fused._transform import unfused, use_eager, use_kernels

__all__ = ["FusedLayerNorm", "FusedLinear", "unfused", "use_eager", "use_kernels"]
