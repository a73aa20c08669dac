"""The measuring harness: attention patterns on real shapes, every backend's error beside its time.

``tubelet bench attention`` runs a :class:`Plan` and ``tubelet bench compare`` sets two runs against each other;
``docs/benchmarks.md`` says how to read the numbers. A backend of your own takes part by :func:`backend`, or by an entry
point of the group ``tubelet.backends``.
"""

from tubelet.bench.compare import Change, compare, comparison, ratio_interval
from tubelet.bench.exact import choose_rows, exact_rows
from tubelet.bench.harness import interleave, stopwatch, summary
from tubelet.bench.pairs import count_pairs
from tubelet.bench.patterns import parse_pattern, pattern_names
from tubelet.bench.plan import Plan
from tubelet.bench.plot import save_plot
from tubelet.bench.records import SCHEMA, load, save, save_csv, schema
from tubelet.bench.registry import available, backend
from tubelet.bench.session import run_plan
from tubelet.bench.shapes import MIXTURES, SHAPES, Shape, parse_shape
from tubelet.bench.table import report

__all__ = [
    "MIXTURES",
    "SCHEMA",
    "SHAPES",
    "Change",
    "Plan",
    "Shape",
    "available",
    "backend",
    "choose_rows",
    "compare",
    "comparison",
    "count_pairs",
    "exact_rows",
    "interleave",
    "load",
    "parse_pattern",
    "parse_shape",
    "pattern_names",
    "ratio_interval",
    "report",
    "run_plan",
    "save",
    "save_csv",
    "save_plot",
    "schema",
    "stopwatch",
    "summary",
]
