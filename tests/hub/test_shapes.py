"""What the shapes of a file's tensors say."""

import pytest

from tubelet.hub.shapes import FileShapes

FILE = FileShapes("Peer", {"a.0.up": (2, 3), "a.11.up": (2, 3), "ab.12.up": (1,), "last": (4,)})


def test_shapes_are_found_and_modules_counted() -> None:
    assert FILE.of("a.0.up") == (2, 3) and FILE.of("last", 1) == (4,)
    assert (FILE.count("a"), FILE.count("ab"), FILE.count("b"), FILE.count("last")) == (12, 13, 0, 0)
    assert FILE.has("last") and not FILE.has("las")


@pytest.mark.parametrize(("name", "rank"), [("a.0.up", 3), ("a.1.up", 2)])
def test_what_is_not_there_is_named(name: str, rank: int) -> None:
    with pytest.raises(ValueError, match=f"the tensors are not Peer's: there is no {name} of rank {rank}"):
        FILE.of(name, rank)
