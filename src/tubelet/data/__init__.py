"""Videos in and out, and datasets of clips.

A video is a float tensor ``(c, t, h, w)`` in [-1, 1] with ``c`` 3 (RGB) or 1 (grey). :func:`read_video` and
:func:`write_video` move it from and to files, :func:`contact_sheet` lays many side by side to look at, and
:class:`ClipFolder` draws clips with their captions from a folder of real files, and
:class:`RandomCrops` batches of random squares.

Decoding needs the extra ``tubelet[video]`` (PyAV, which brings FFmpeg's libraries, and Pillow); importing this package
does not.
"""

from tubelet.data.captions import Caption, read_captions
from tubelet.data.clips import Clip, ClipFolder
from tubelet.data.coding import decode_file, encode_file
from tubelet.data.crops import RandomCrops
from tubelet.data.latents import CachedLatents, LatentClip, cache_latents
from tubelet.data.sheets import contact_sheet, write_contact_sheet
from tubelet.data.video import VideoInfo, probe_video, read_clips, read_video
from tubelet.data.writing import write_clips, write_video

__all__ = [
    "CachedLatents",
    "Caption",
    "Clip",
    "ClipFolder",
    "LatentClip",
    "RandomCrops",
    "VideoInfo",
    "cache_latents",
    "contact_sheet",
    "decode_file",
    "encode_file",
    "probe_video",
    "read_captions",
    "read_clips",
    "read_video",
    "write_clips",
    "write_contact_sheet",
    "write_video",
]
