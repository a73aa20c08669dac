"""What every test runs under: shape checks on, one thread, fixed seeds, and the markers' meaning."""

import dataclasses
import inspect
import os
import random
import sys
from collections.abc import Iterator

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

# Before anything imports tubelet: every annotated call of the library is checked by jaxtyping and beartype.
jaxtyping.install_import_hook("tubelet", "beartype.beartype")

# The tensors of the tests are small and the machine is often shared: a second thread costs more in waiting than it
# gives in arithmetic (up to ten times on a busy machine), and one thread fixes the order of every sum.
torch.set_num_threads(1)

# The examples of every run are the same ones (derandomize): more of them belong into "deep", which draws new ones.
settings.register_profile("dev", deadline=None, derandomize=True, max_examples=20)
settings.register_profile(
    "deep", deadline=None, max_examples=2000, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked ``gpu`` where there is no CUDA device; leave the compiler's own lines out of the coverage.

    A graph is traced by thousands of lines of Python that are not ours, and counting doubles their time; what a graph
    runs of the library, the tests of its values run too.
    """
    for item in items:
        if item.get_closest_marker("graph"):
            item.add_marker(pytest.mark.no_cover)
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def _seeds() -> None:
    """Give every test the same global seeds."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - the legacy global is what other packages draw from
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _shape_checks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Turn runtime shape checks off for tests marked ``graph``: tracing cannot follow a type checker."""
    off = request.node.get_closest_marker("graph") is not None
    jaxtyping.config.update("jaxtyping_disable", off)
    if off:
        torch._dynamo.reset()
        for cls in _library_dataclasses():
            for name, plain in _unchecked(cls):
                monkeypatch.setattr(cls, name, plain)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def _library_dataclasses() -> set[type]:
    modules = [module for name, module in sys.modules.items() if name.split(".")[0] == "tubelet"]
    values = (value for module in modules for value in vars(module).values())
    return {v for v in values if isinstance(v, type) and dataclasses.is_dataclass(v) and "tubelet" in v.__module__}


def _unchecked(cls: type) -> Iterator[tuple[str, object]]:
    """The methods of a class without the checker, whose closures tracing cannot rebuild inside a graph."""
    for name, member in list(vars(cls).items()):
        if inspect.isfunction(member) and hasattr(member, "__wrapped__"):
            yield name, inspect.unwrap(member)
        elif isinstance(member, property) and hasattr(member.fget, "__wrapped__"):
            yield name, property(inspect.unwrap(member.fget))
