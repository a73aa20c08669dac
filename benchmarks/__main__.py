"""``python -m benchmarks``: measure, print a table, and write JSON where asked. Exit status 1: a result was wrong."""

import argparse
import json
import sys
from pathlib import Path

import torch

from benchmarks import as_json, attention, environment, measure, table, video_dit

SUITES = {"attention": attention.cases, "video_dit": video_dit.cases}


def main() -> int:
    """Run the chosen suites."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"of {', '.join(SUITES)}; default all")
    parser.add_argument("--rounds", type=int, default=9, help="timed calls of each case; default 9")
    parser.add_argument("--threads", type=int, default=1, help="of torch; default 1")
    parser.add_argument("--device", default="cpu", help="default cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write environment and results there")
    arguments = parser.parse_args()
    chosen = arguments.suites or list(SUITES)
    if unknown := sorted(set(chosen) - set(SUITES)):
        parser.error(f"unknown suites {unknown}; the suites are {', '.join(SUITES)}")
    if arguments.rounds < 2 or arguments.threads < 1:
        parser.error(f"at least 2 rounds and 1 thread are needed, got {arguments.rounds} and {arguments.threads}")
    torch.set_num_threads(arguments.threads)
    print(", ".join(f"{name} {value}" for name, value in environment().items()))
    results = []
    for name in chosen:
        for cases in SUITES[name](arguments.device):
            group = measure(cases, arguments.rounds)
            print("\n" + table(group), flush=True)
            results += group
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(as_json(results), indent=1) + "\n")
    return 0 if all(result.right for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
