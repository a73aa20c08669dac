"""The gate of all launches that ship, a part at a time: workers share whole files."""

from tubelet.kernels import aot


def check(word: str, least: int) -> None:
    """Every launch whose name holds ``word``, at least so many readings, is compiled and stays below the caps."""
    found = list(aot.check(word=word))
    assert [f"{each.kernel} {each.case}: {each.fault}" for each in found if not each.passes] == []
    assert len(found) >= least
