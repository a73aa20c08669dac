"""The judge: an independent network that reads digits, and a ruler that reads directions.

:class:`Judge` is a small convolutional network over single frames ``(n, 1, h, w)`` of any size from 16 pixels up, with
a global maximum in place of a flattening layer; what it says of a video ``(1, t, h, w)`` is the mean over its frames.
:func:`train_judge` trains it in seconds on the split "judge" of :mod:`tubelet.demo.digits`, whose handwriting no
generator sees, with warps as in Simard, Steinkraus & Platt (ICDAR 2003) so that it reads other hands too.
:func:`direction` needs no network: it follows the centre of the ink.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tubelet.demo import digits
from tubelet.demo.digits import Direction, Size

__all__ = ["Judge", "direction", "ink_centre", "train_judge"]

_STEPS, _BATCH, _RATE, _WEIGHT_DECAY, _SMOOTHING = 350, 64, 5e-3, 0.02, 0.05
_TRAINING_SIZES: tuple[Size, ...] = ((1, 16, 16), (1, 24, 24))
_WARP = 0.5  # strength of the training warps; 1 is a turn of 17 degrees, 20 % of scale, 30 % of slant
_FAINT = 0.25  # ink below this share of full ink does not count as ink
_FRAMES_AT_ONCE = 512


class Judge(nn.Module):
    """Reads the digit of a frame: ``(n, 1, h, w)`` in [-1, 1], h, w >= 16, to logits ``(n, 10)``.

    Args:
        width: channels of the first layer; the features have four times as many.

    Example:
        >>> judge = Judge(width=4).eval()
        >>> judge.digit([torch.zeros(1, 5, 24, 16), torch.zeros(1, 1, 16, 16)]).shape
        torch.Size([2, 10])
    """

    def __init__(
        self, width: int = 16, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()

        def layer(cin: int, cout: int) -> list[nn.Module]:
            conv = nn.Conv2d(cin, cout, 3, padding=1, bias=False, device=device, dtype=dtype)
            return [conv, nn.BatchNorm2d(cout, device=device, dtype=dtype), nn.ReLU()]

        half, quarter = 2 * width, 4 * width
        self.body = nn.Sequential(
            *layer(1, width),
            nn.MaxPool2d(2),
            *layer(width, half),
            *layer(half, half),
            nn.MaxPool2d(2),
            *layer(half, quarter),
            *layer(quarter, quarter),
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Linear(quarter, 10, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Draws all weights anew."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.Linear):
                module.reset_parameters()

    def forward(self, frames: Float[Tensor, "n 1 h w"]) -> Float[Tensor, "n 10"]:
        """Logits of the ten digits."""
        logits: Tensor = self.head(self.body(frames))
        return logits

    def digit(self, videos: Sequence[Float[Tensor, "1 _ _ _"]]) -> Float[Tensor, "n 10"]:
        """Probabilities of the ten digits, averaged over the frames of each video; the sizes may differ.

        Raises:
            ValueError: a video with a side of less than 16 pixels.

        Example:
            >>> Judge(width=4).eval().digit([torch.zeros(1, 5, 24, 16)]).sum(-1).round(decimals=3)
            tensor([1.])
        """
        return _over_frames(lambda frames: self(frames).softmax(-1), videos)

    def features(self, videos: Sequence[Float[Tensor, "1 _ _ _"]]) -> Float[Tensor, "n d"]:
        """What the last layer sees of each video, averaged over its frames.

        Raises:
            ValueError: a video with a side of less than 16 pixels.

        Example:
            >>> Judge(width=4).eval().features([torch.zeros(1, 5, 24, 16)]).shape
            torch.Size([1, 16])
        """
        return _over_frames(self.body, videos)


@torch.no_grad()
def _over_frames(
    read: Callable[[Float[Tensor, "n 1 h w"]], Tensor], videos: Sequence[Float[Tensor, "1 _ _ _"]]
) -> Float[Tensor, "n d"]:
    """The mean over each video's frames of what ``read`` says; videos of one size are read together."""
    answers: dict[int, Tensor] = {}
    for shape in dict.fromkeys(video.shape for video in videos):
        if min(shape[2:]) < 16:
            raise ValueError(f"the judge needs sides of at least 16 pixels, got a video of shape {tuple(shape)}")
        members = [i for i, video in enumerate(videos) if video.shape == shape]
        frames = torch.cat([videos[i][0] for i in members])[:, None]
        said = torch.cat([read(part) for part in torch.split(frames, _FRAMES_AT_ONCE)])
        answers.update(zip(members, said.reshape(len(members), shape[1], -1).mean(1), strict=True))
    return torch.stack([answers[i] for i in range(len(videos))])


def train_judge(seed: int = 0, steps: int = _STEPS, progress: Callable[[int, float], None] | None = None) -> Judge:
    """A judge trained on the split "judge", ready to read (in evaluation mode); the same for the same arguments.

    Args:
        seed: of the first weights, the clips and the warps. Leaves PyTorch's own random numbers as they were.
        steps: of 64 frames each; the default takes about 10 s on one core.
        progress: called after each step with its number, from 1, and its loss.

    Raises:
        ValueError: ``steps`` is smaller than 1.

    Example:
        >>> train_judge(steps=1).training
        False
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        judge = Judge()
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=_RATE, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=max(steps, 2))
    for step in range(steps):
        clips = digits.batch("judge", seed, step * _BATCH, _BATCH, _TRAINING_SIZES[step % len(_TRAINING_SIZES)])
        frames = _warped(torch.stack([clip.video[:, 0] for clip in clips]), generator)
        said: Tensor = judge(frames)
        loss = F.cross_entropy(said, torch.tensor([clip.digit for clip in clips]), label_smoothing=_SMOOTHING)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        if progress is not None:
            progress(step + 1, loss.item())
    return judge.eval()


def _warped(frames: Float[Tensor, "n 1 h w"], generator: torch.Generator) -> Float[Tensor, "n 1 h w"]:
    """Frames as another hand might have written them: turned, stretched, slanted, bent, paler or fatter."""
    n = len(frames)
    turn, tall, wide, slant, tone = (_WARP * (2 * torch.rand(5, n, generator=generator) - 1)).unbind()
    cos, sin, zero = (0.3 * turn).cos(), (0.3 * turn).sin(), torch.zeros(n)
    wide, tall = 1 + 0.2 * wide, 1 + 0.2 * tall
    affine = torch.stack([cos * wide, 0.3 * slant - sin * tall, zero, sin * wide, cos * tall, zero], 1)
    bend = 0.12 * _WARP * (2 * torch.rand(n, 2, 5, 5, generator=generator) - 1)
    bend = F.interpolate(bend, size=frames.shape[2:], mode="bicubic").permute(0, 2, 3, 1)
    grid = F.affine_grid(affine.reshape(n, 2, 3), list(frames.shape), align_corners=False) + bend
    ink = F.grid_sample((frames + 1) / 2, grid, align_corners=False).clamp(0, 1)
    return 2 * ink.pow((0.5 * tone).exp().reshape(-1, 1, 1, 1)) - 1


def ink_centre(video: Float[Tensor, "1 t h w"]) -> Float[Tensor, "t 2"]:
    """The centre of the ink of each frame as (y, x) in pixels; the middle of the canvas where there is no ink.

    Ink fainter than a quarter of full ink does not count.

    Example:
        >>> video = torch.full((1, 1, 16, 16), -1.0)
        >>> video[0, 0, 3, 5] = 1
        >>> ink_centre(video)
        tensor([[3., 5.]])
    """
    ink = (video[0].double().clamp(-1, 1) + 1) / 2
    ink = ink * (ink > _FAINT) + 1e-12
    height, width = ink.shape[1:]
    y = (ink.sum(2) * torch.arange(height)).sum(1)
    x = (ink.sum(1) * torch.arange(width)).sum(1)
    return (torch.stack([y, x], dim=1) / ink.sum((1, 2))[:, None]).float()


def direction(video: Float[Tensor, "1 t h w"], least: float = 1.0) -> Direction | None:
    """Where the ink goes from the first third of the frames to the last; None if it goes less than ``least`` pixels.

    Example:
        >>> direction(digits.clip("judge", seed=0, index=0, size=(9, 16, 32)).video)
        'right'
    """
    third = max(1, video.shape[1] // 3)
    centre = ink_centre(video)
    y, x = (centre[-third:].mean(0) - centre[:third].mean(0)).tolist()
    if max(abs(y), abs(x)) < least:
        return None
    if abs(x) > abs(y):
        return "right" if x > 0 else "left"
    return "down" if y > 0 else "up"
