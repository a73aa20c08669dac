# ruff: noqa: N803 - Triton's pointers and constants are upper case
"""Triton kernels of norm + SiLU + padding. Imported only where they run: this module needs triton.

Shape suffixes: ``_p`` ``POSITIONS`` positions of a frame, ``_c`` ``CHANNELS`` channels, ``_pc`` a tile of both. The
positions of a frame lie at one distance, its channels at another; where either is 1 the compiler reads along it.
``C`` channels are real. Statistics and sums are float32. ``GROUP`` channels share their statistics, of one frame or
(not ``PER_FRAME``) of all; 0 is the RMS norm over the channels of a position, of which a program then has all.
"""

from typing import no_type_check

import triton
import triton.language as tl

__all__ = ["backward", "forward", "merge", "statistics"]


@triton.jit
@no_type_check
def _normed(x_pc, mask_pc, STATS, instance, channel_c, eps, C: tl.constexpr, GROUP: tl.constexpr):
    """What is normalised, and 1/deviation: one a position ``(POSITIONS, 1)`` or one a channel ``(1, CHANNELS)``."""
    if GROUP == 0:
        rstd_pc = (1 / tl.sqrt(tl.sum(x_pc * x_pc, axis=1) / C + eps))[:, None]
        normed_pc = x_pc * rstd_pc
    else:
        place_c = instance * (C // GROUP) + channel_c // GROUP
        rstd_pc = tl.load(STATS + 2 * place_c + 1, mask=channel_c < C, other=0.0)[None, :]
        mean_c = tl.load(STATS + 2 * place_c, mask=channel_c < C, other=0.0)
        normed_pc = tl.where(mask_pc, (x_pc - mean_c[None, :]) * rstd_pc, 0.0)
    return normed_pc, rstd_pc


@triton.jit
@no_type_check
def _affine(normed_pc, WEIGHT, BIAS, channel_c, C: tl.constexpr):
    if WEIGHT is not None:
        normed_pc *= tl.load(WEIGHT + channel_c, mask=channel_c < C, other=0.0).to(tl.float32)[None, :]
    if BIAS is not None:
        normed_pc += tl.load(BIAS + channel_c, mask=channel_c < C, other=0.0).to(tl.float32)[None, :]
    return normed_pc


@triton.jit
@no_type_check
def forward(
    X,
    STATE,
    OUT,
    STATS,
    WEIGHT,
    BIAS,
    frames,
    before,
    height,
    width,
    x_by_sample,
    x_by_frame,
    x_by_channel,
    x_by_position,
    state_by_sample,
    state_by_frame,
    state_by_channel,
    state_by_position,
    out_by_sample,
    out_by_frame,
    out_by_channel,
    out_by_position,
    eps,
    C: tl.constexpr,
    GROUP: tl.constexpr,
    PER_FRAME: tl.constexpr,
    COPIES: tl.constexpr,
    REPLICATE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """One program writes ``POSITIONS`` of a padded frame: each is made of the position of ``X`` that it shows.

    ``before`` frames stand before the others: those of ``STATE``, ``COPIES`` of the first, or zeros. ``ROWS`` and
    ``COLUMNS`` stand on each side of a frame.
    """
    sample, frame = (tl.program_id(1) // (frames + before)).to(tl.int64), tl.program_id(1) % (frames + before)
    target_p = tl.program_id(0) * POSITIONS + tl.arange(0, POSITIONS)
    channel_c = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    wide = width + 2 * COLUMNS
    here_p = target_p < (height + 2 * ROWS) * wide
    source_p, shown_p = target_p, here_p
    if ROWS + COLUMNS > 0:
        row_p, column_p = target_p // wide - ROWS, target_p % wide - COLUMNS
        near_row_p = tl.minimum(tl.maximum(row_p, 0), height - 1)
        near_column_p = tl.minimum(tl.maximum(column_p, 0), width - 1)
        source_p = near_row_p * width + near_column_p
        if not REPLICATE:
            shown_p = here_p & (near_row_p == row_p) & (near_column_p == column_p)
    mask_pc = shown_p[:, None] & (channel_c < C)[None, :]
    long_c, long_p = channel_c.to(tl.int64), source_p.to(tl.int64)
    source = frame - before
    if COPIES:
        source = tl.maximum(source, 0)
    y_pc = tl.zeros([POSITIONS, CHANNELS], tl.float32)
    if source >= 0:
        start = X + sample * x_by_sample + source.to(tl.int64) * x_by_frame
        place_pc = long_p[:, None] * x_by_position + long_c[None, :] * x_by_channel
        x_pc = tl.load(start + place_pc, mask=mask_pc, other=0.0).to(tl.float32)
        instance = sample
        if PER_FRAME:
            instance = sample * frames + source
        normed_pc, _ = _normed(x_pc, mask_pc, STATS, instance, channel_c, eps, C, GROUP)
        z_pc = _affine(normed_pc, WEIGHT, BIAS, channel_c, C)
        y_pc = tl.where(mask_pc, z_pc * tl.sigmoid(z_pc), 0.0)
    elif STATE is not None:
        start = STATE + sample * state_by_sample + frame.to(tl.int64) * state_by_frame
        place_pc = long_p[:, None] * state_by_position + long_c[None, :] * state_by_channel
        y_pc = tl.load(start + place_pc, mask=mask_pc, other=0.0).to(tl.float32)
    start = OUT + sample * out_by_sample + frame.to(tl.int64) * out_by_frame
    place_pc = target_p.to(tl.int64)[:, None] * out_by_position + long_c[None, :] * out_by_channel
    tl.store(start + place_pc, y_pc.to(OUT.dtype.element_ty), mask=here_p[:, None] & (channel_c < C)[None, :])


@triton.jit
@no_type_check
def _gathered(
    GRAD,
    source_p,
    mask_pc,
    times,
    channel_c,
    height,
    width,
    by_frame,
    by_channel,
    by_position,
    REPLICATE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The gradient of positions: the sum over all that show them, in ``times`` frames that end at ``GRAD``."""
    row_p, column_p = source_p // width, source_p % width
    wide, offset_c = width + 2 * COLUMNS, channel_c.to(tl.int64) * by_channel
    total_pc = tl.zeros(mask_pc.shape, tl.float32)
    start = GRAD
    for _ in range(times):
        if REPLICATE:
            for down in range(-ROWS, ROWS + 1):
                for right in range(-COLUMNS, COLUMNS + 1):
                    above_p, below_p = (row_p == 0) & (down <= 0), (row_p == height - 1) & (down >= 0)
                    ahead_p, behind_p = (column_p == 0) & (right <= 0), (column_p == width - 1) & (right >= 0)
                    shown_p = (above_p | below_p | (down == 0)) & (ahead_p | behind_p | (right == 0))
                    place_p = ((row_p + ROWS + down) * wide + column_p + COLUMNS + right).to(tl.int64)
                    place_pc = place_p[:, None] * by_position + offset_c[None, :]
                    total_pc += tl.load(start + place_pc, mask=mask_pc & shown_p[:, None], other=0.0).to(tl.float32)
        else:
            place_p = source_p.to(tl.int64)
            if ROWS + COLUMNS > 0:
                place_p = ((row_p + ROWS) * wide + column_p + COLUMNS).to(tl.int64)
            place_pc = place_p[:, None] * by_position + offset_c[None, :]
            total_pc += tl.load(start + place_pc, mask=mask_pc, other=0.0).to(tl.float32)
        start -= by_frame
    return total_pc


@triton.jit
@no_type_check
def backward(
    GRAD,
    X,
    DX,
    SUMS,
    STATS,
    MEANS,
    WEIGHT,
    BIAS,
    frames,
    before,
    height,
    width,
    tiles,
    grad_by_sample,
    grad_by_frame,
    grad_by_channel,
    grad_by_position,
    x_by_sample,
    x_by_frame,
    x_by_channel,
    x_by_position,
    dx_by_sample,
    dx_by_frame,
    dx_by_channel,
    dx_by_position,
    eps,
    C: tl.constexpr,
    GROUP: tl.constexpr,
    PER_FRAME: tl.constexpr,
    COPIES: tl.constexpr,
    REPLICATE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """One program walks ``tiles`` tiles of a frame: the gradient of x, and sums over what it walked.

    ``SUMS`` ``(2, planes, chunks, C)``: of the norm's gradient before the affine part, and of it times what is
    normalised. With groups that is a pass of its own (no DX): the second needs ``MEANS``, of both sums times the weight
    over all positions and channels of a group.
    """
    plane, chunk = tl.program_id(1), tl.program_id(0)
    sample, frame = (plane // frames).to(tl.int64), plane % frames
    channel_c = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    inside_c, long_c = channel_c < C, channel_c.to(tl.int64)
    instance = sample
    if PER_FRAME:
        instance = plane.to(tl.int64)
    grad_start = GRAD + sample * grad_by_sample + (frame + before).to(tl.int64) * grad_by_frame
    x_start = X + sample * x_by_sample + frame.to(tl.int64) * x_by_frame
    times = 1
    if COPIES:
        times = tl.where(frame == 0, before + 1, 1)
    plain_pc = tl.zeros([POSITIONS, CHANNELS], tl.float32)
    normal_pc = tl.zeros([POSITIONS, CHANNELS], tl.float32)
    for tile in range(tiles):
        source_p = (chunk * tiles + tile) * POSITIONS + tl.arange(0, POSITIONS)
        mask_pc = (source_p < height * width)[:, None] & inside_c[None, :]
        place_pc = source_p.to(tl.int64)[:, None] * x_by_position + long_c[None, :] * x_by_channel
        x_pc = tl.load(x_start + place_pc, mask=mask_pc, other=0.0).to(tl.float32)
        normed_pc, rstd_pc = _normed(x_pc, mask_pc, STATS, instance, channel_c, eps, C, GROUP)
        z_pc = _affine(normed_pc, WEIGHT, BIAS, channel_c, C)
        grad_pc = _gathered(
            grad_start,
            source_p,
            mask_pc,
            times,
            channel_c,
            height,
            width,
            grad_by_frame,
            grad_by_channel,
            grad_by_position,
            REPLICATE,
            ROWS,
            COLUMNS,
        )
        share_pc = tl.sigmoid(z_pc)
        grad_pc *= share_pc * (1 + z_pc * (1 - share_pc))
        if SUMS is not None:
            plain_pc += grad_pc
            normal_pc += grad_pc * normed_pc
        if DX is not None:
            if WEIGHT is not None:
                grad_pc *= tl.load(WEIGHT + channel_c, mask=inside_c, other=0.0).to(tl.float32)[None, :]
            if GROUP == 0:
                grad_pc -= normed_pc * (tl.sum(grad_pc * normed_pc, axis=1) / C)[:, None]
            else:
                mean_c = instance * (C // GROUP) + channel_c // GROUP
                grad_pc -= tl.load(MEANS + 2 * mean_c, mask=inside_c, other=0.0)[None, :]
                grad_pc -= normed_pc * tl.load(MEANS + 2 * mean_c + 1, mask=inside_c, other=0.0)[None, :]
            place_pc = source_p.to(tl.int64)[:, None] * dx_by_position + long_c[None, :] * dx_by_channel
            dx_start = DX + sample * dx_by_sample + frame.to(tl.int64) * dx_by_frame
            tl.store(dx_start + place_pc, (grad_pc * rstd_pc).to(DX.dtype.element_ty), mask=mask_pc)
    if SUMS is not None:
        slot = plane.to(tl.int64) * tl.num_programs(0) + chunk
        slots = tl.num_programs(1).to(tl.int64) * tl.num_programs(0)
        tl.store(SUMS + slot * C + channel_c, tl.sum(plain_pc, axis=0), mask=inside_c)
        tl.store(SUMS + (slots + slot) * C + channel_c, tl.sum(normal_pc, axis=0), mask=inside_c)


@triton.jit
@no_type_check
def statistics(
    X,
    PARTS,
    frames,
    positions,
    tiles,
    x_by_sample,
    x_by_frame,
    x_by_channel,
    x_by_position,
    C: tl.constexpr,
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """One program walks ``tiles`` tiles of a frame: the mean of each channel, and its squared deviations from it.

    ``PARTS`` is ``(2, planes, chunks, C)``. Numbers are taken from the channel's first of the chunk, which keeps the
    digits of a large mean.
    """
    plane, chunk = tl.program_id(1), tl.program_id(0)
    channel_c = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    inside_c = channel_c < C
    start = X + (plane // frames).to(tl.int64) * x_by_sample + (plane % frames).to(tl.int64) * x_by_frame
    start_c = start + channel_c.to(tl.int64) * x_by_channel
    first = (chunk * tiles * POSITIONS).to(tl.int64)
    origin_c = tl.load(start_c + first * x_by_position, mask=inside_c, other=0.0).to(tl.float32)
    plain_pc = tl.zeros([POSITIONS, CHANNELS], tl.float32)
    square_pc = tl.zeros([POSITIONS, CHANNELS], tl.float32)
    for tile in range(tiles):
        position_p = first + tile * POSITIONS + tl.arange(0, POSITIONS)
        mask_pc = (position_p < positions)[:, None] & inside_c[None, :]
        x_pc = tl.load(start_c[None, :] + position_p[:, None] * x_by_position, mask=mask_pc, other=0.0).to(tl.float32)
        x_pc = tl.where(mask_pc, x_pc - origin_c[None, :], 0.0)
        plain_pc += x_pc
        square_pc += x_pc * x_pc
    count = tl.minimum(positions - first, tiles * POSITIONS).to(tl.float32)
    mean_c = tl.sum(plain_pc, axis=0) / count
    slot = plane.to(tl.int64) * tl.num_programs(0) + chunk
    slots = tl.num_programs(1).to(tl.int64) * tl.num_programs(0)
    tl.store(PARTS + slot * C + channel_c, origin_c + mean_c, mask=inside_c)
    spread_c = tl.sum(square_pc, axis=0) - count * mean_c * mean_c
    tl.store(PARTS + (slots + slot) * C + channel_c, spread_c, mask=inside_c)


@triton.jit
@no_type_check
def merge(
    PARTS,
    STATS,
    slots,
    own,
    chunks,
    chunk,
    positions,
    numbers,
    eps,
    C: tl.constexpr,
    GROUP: tl.constexpr,
    PARTS_AT_ONCE: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """One program makes mean and 1/deviation of a group of ``numbers`` from its ``own`` slots, which follow each other.

    Slot ``i`` holds the statistics of ``chunk`` positions, or of those that its frame has left (Chan, Golub & LeVeque,
    1979).
    """
    instance, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    member_c = tl.arange(0, CHANNELS)
    channel_c = group * GROUP + member_c
    total_pc = tl.zeros([PARTS_AT_ONCE, CHANNELS], tl.float32)
    for begin in range(0, own, PARTS_AT_ONCE):
        part_p = begin + tl.arange(0, PARTS_AT_ONCE)
        mask_pc = (part_p < own)[:, None] & (member_c < GROUP)[None, :]
        count_p = tl.minimum(chunk, positions - (part_p % chunks) * chunk).to(tl.float32)
        place_pc = (instance * own + part_p)[:, None] * C + channel_c[None, :]
        total_pc += tl.load(PARTS + place_pc, mask=mask_pc, other=0.0) * (count_p / numbers)[:, None]
    mean = tl.sum(tl.sum(total_pc, axis=1), axis=0)
    total_pc = tl.zeros([PARTS_AT_ONCE, CHANNELS], tl.float32)
    for begin in range(0, own, PARTS_AT_ONCE):
        part_p = begin + tl.arange(0, PARTS_AT_ONCE)
        mask_pc = (part_p < own)[:, None] & (member_c < GROUP)[None, :]
        count_p = tl.minimum(chunk, positions - (part_p % chunks) * chunk).to(tl.float32)
        place_pc = (instance * own + part_p)[:, None] * C + channel_c[None, :]
        off_pc = tl.where(mask_pc, tl.load(PARTS + place_pc, mask=mask_pc, other=0.0) - mean, 0.0)
        spread_pc = tl.load(PARTS + slots * C + place_pc, mask=mask_pc, other=0.0)
        total_pc += spread_pc + off_pc * off_pc * count_p[:, None]
    variance = tl.sum(tl.sum(total_pc, axis=1), axis=0) / numbers
    place = 2 * (instance * (C // GROUP) + group)
    tl.store(STATS + place, mean)
    tl.store(STATS + place + 1, 1 / tl.sqrt(variance + eps))
