"""Whole samples in packs: what goes in comes out, and a model sees what it would see of each sample alone."""

import copy
import gc
import pickle
import weakref
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from tubelet.layout import Grid, TokenLayout
from tubelet.packing import ConstantDrop, PackedStream, Sample, collate, drop_tokens

FIELDS = ("tokens", "time", "text", "positions")


@st.composite
def batches(draw: st.DrawFn) -> Callable[[], list[Sample]]:
    """Samples of any sizes, some of whose tokens were dropped, with any of time, text and positions."""
    frames, text, positions = draw(st.sampled_from([None, False, True])), draw(st.booleans()), draw(st.booleans())
    side = st.integers(1, 3)
    sizes = draw(st.lists(st.tuples(side, side, side, st.integers(0, 3), st.booleans()), min_size=1, max_size=4))

    def make() -> list[Sample]:
        samples = []
        for number, (t, h, w, length, drop) in enumerate(sizes):
            time = None if frames is None else torch.rand(t) if frames else torch.rand(())
            words = torch.randn(length, 2) if text else None
            places = torch.randn(t * h * w, 2) if positions else None
            sample = Sample(torch.randn(t * h * w, 3), Grid(t, h, w), time, words, places)
            if drop:
                sample = sample.keep(drop_tokens(sample.layout, ConstantDrop(0.5), [number]))
            samples.append(sample)
        return samples

    return make


def same(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    return (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b))


def equal(a: Sample, b: Sample) -> bool:
    kept = [tuple(range(s.grid.tokens)) if s.kept is None else s.kept for s in (a, b)]
    return a.grid == b.grid and kept[0] == kept[1] and all(same(getattr(a, f), getattr(b, f)) for f in FIELDS)


@given(batches(), st.integers(0, 4), st.booleans())
def test_samples_come_back(make: Callable[[], list[Sample]], spare: int, fixed: bool) -> None:
    samples = make()
    total, words = sum(len(s.tokens) for s in samples), sum(0 if s.text is None else len(s.text) for s in samples)
    batch = collate(samples, total + spare if fixed else None, words + spare if fixed else None)
    assert batch.layout.lengths == tuple(len(s.tokens) for s in samples)
    assert batch.tokens.shape[0] == (total + spare if fixed else total)
    assert not batch.tokens[total:].any()
    assert all(equal(a, b) for a, b in zip(batch.samples(), samples, strict=True))
    part = torch.randn(len(batch.tokens), 2)
    parts = part[:total].split(batch.layout.lengths)
    assert all(torch.equal(a, b) for a, b in zip(batch.unpack(part), parts, strict=True))


@given(batches())
def test_each_token_has_its_own_level_place_and_text(make: Callable[[], list[Sample]]) -> None:
    """Against what each sample says alone."""
    samples = make()
    batch = collate(samples, capacity=200)
    index = batch.layout.on("cpu")
    start = 0
    expanded = batch.rows(index).expand() if batch.time is not None else None
    for number, sample in enumerate(samples):
        alone = sample.layout.on("cpu")
        span = slice(start, start + len(sample.tokens))
        assert torch.equal(index.coords[span], alone.coords) and torch.equal(index.extent[span], alone.extent)
        assert (index.sample[span] == number).all()
        if sample.positions is not None and batch.positions is not None:
            assert torch.equal(batch.positions[span], sample.positions)
        if expanded is not None and sample.time is not None:
            want = sample.time.expand(sample.grid.t)[alone.coords[:, 0]]
            assert torch.equal(expanded[span], want)
        if sample.text is not None:
            assert batch.text_layout is not None and batch.text is not None
            begin = batch.text_layout.starts[number]
            assert torch.equal(batch.text[begin : begin + len(sample.text)], sample.text)
        start += len(sample.tokens)


def images(count: int, seed: int = 0) -> list[Sample]:
    generator = torch.Generator().manual_seed(seed)
    sides = torch.randint(1, 6, (count, 2), generator=generator).tolist()
    return [Sample(torch.full((h * w, 2), i), Grid(1, h, w), torch.tensor(i / count)) for i, (h, w) in enumerate(sides)]


def seen(batches: object) -> list[int]:
    return sorted(int(s.tokens[0, 0]) for batch in batches for s in batch.samples())  # type: ignore[attr-defined]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_gives_each_sample_once_in_batches_of_one_shape(workers: int) -> None:
    loader = DataLoader(PackedStream(images(60), budget=64, open_bins=3), batch_size=None, num_workers=workers)
    batches = list(loader)
    assert seen(batches) == list(range(60))
    assert {tuple(batch.tokens.shape) for batch in batches} == {(64, 2)}
    assert all(batch.layout.bucketed for batch in batches)
    full = [sum(batch.layout.lengths) for batch in batches]
    assert sum(full) >= 0.8 * 64 * len(full)
    assert seen(loader) == list(range(60))  # and again


def test_an_endless_stream_holds_few_samples() -> None:
    made: list[weakref.ref[Sample]] = []

    def endless() -> Iterator[Sample]:
        while True:
            sample = Sample(torch.zeros(4, 2), Grid(1, 2, 2))
            made.append(weakref.ref(sample))
            yield sample

    stream = iter(PackedStream(endless(), budget=10, open_bins=2))
    for number in range(1, 20):
        assert next(stream).layout.lengths == (4, 4)
        assert len(made) <= 2 * number + 5
    gc.collect()
    assert sum(ref() is not None for ref in made) <= 7


def test_batches_travel() -> None:
    batch = collate(images(3), 100)
    for other in (pickle.loads(pickle.dumps(batch)), copy.copy(batch), batch.to("cpu"), batch.to("meta")):
        assert other.layout == batch.layout and other.tokens.shape == batch.tokens.shape
    assert batch.to("meta").tokens.is_meta and batch.to("meta").time.is_meta  # type: ignore[union-attr]


def sample(**change: object) -> Sample:
    return Sample(**{"tokens": torch.zeros(4, 2), "grid": Grid(2, 1, 2), **change})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sample(tokens=torch.zeros(3, 2)), r"tokens has 3 entries, but Grid\(t=2, h=1, w=2\) has 4"),
        pytest.param(  # without the shape checker, which would refuse it first
            lambda: sample(positions=torch.zeros(5, 2)),
            "positions has 5 entries, but the sample has 4",
            marks=pytest.mark.graph,
        ),
        (lambda: sample(time=torch.zeros(3)), r"got \(3,\) for Grid\(t=2"),
        (lambda: sample().keep([3, 1]), "strictly increasing, got 1 after 3"),
        (lambda: collate([]), "samples is empty"),
        (lambda: collate([sample()], capacity=3), "4 tokens, more than capacity=3"),
        (lambda: collate([sample(text=torch.zeros(5, 2))], None, 4), "5 tokens, more than capacity=4"),
        (
            lambda: collate([sample(time=torch.tensor(0.0)), sample()]),
            "1 of 2 samples have time, but sample 1 has none",
        ),
        (
            lambda: collate([sample(time=torch.tensor(0.0)), sample(time=torch.zeros(2))]),
            r"got shapes \[\(\), \(2,\)\]",
        ),
        (lambda: collate([sample()]).rows(TokenLayout.packed([Grid(2, 1, 2)]).on("cpu")), "no noise levels: its 1"),
        (lambda: collate([sample()]).unpack(torch.zeros(5, 2)), r"\(5, 2\) .* \(4,\)"),
        (lambda: PackedStream([], 0), "budget must be at least 1 token, got 0"),
        (lambda: PackedStream([], 4, open_bins=0), "open_bins must be at least 1, got 0"),
        (lambda: list(PackedStream([sample()], 3)), "sample 0 has 4 tokens, more than the budget of 3"),
    ],
)
def test_errors(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]
