"""The open video transformers against diffusers' own classes: same weights, same numbers in, one run.

Each model has its real width and few layers, on about 4,000 tokens. Both are run on one clip (a batch of one, which is
all that the peers do without padding). The answers are compared before anything is timed, then the two take turns.
"""

from benchmarks.models.compare import Compared, compare_models, random_peer, report_models, with_islands
from benchmarks.models.families import FAMILIES
from benchmarks.models.family import Family

__all__ = ["FAMILIES", "Compared", "Family", "compare_models", "random_peer", "report_models", "with_islands"]
