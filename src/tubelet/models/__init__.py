"""Whole models, one readable file each: wiring written out, a frozen flat config, presets as one-line functions."""

from tubelet.models.video_dit import VideoDiT, VideoDiTConfig, video_dit_b, video_dit_digits, video_dit_s, video_dit_xl

__all__ = ["VideoDiT", "VideoDiTConfig", "video_dit_b", "video_dit_digits", "video_dit_s", "video_dit_xl"]
