"""``python -m benchmarks``: measure, print tables, and write JSON where asked. Exit status 1: a result was wrong."""

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import geometric_mean

import torch

from benchmarks import (
    Case,
    Result,
    as_json,
    attention,
    blocks,
    measure,
    models,
    navit,
    overhead,
    papers,
    samplers,
    table,
    vae,
    video_dit,
)
from tubelet.bench import report, run_plan, summary
from tubelet.bench.device import environment
from tubelet.files import write_json

SUITES = ("attention", "blocks", "models", "navit", "overhead", "papers", "samplers", "vae", "video_dit")


def main() -> int:
    """Run the chosen suites."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"of {', '.join(SUITES)}; default all")
    parser.add_argument("--rounds", type=int, default=9, help="timed calls of each case; default 9")
    parser.add_argument("--threads", type=int, default=1, help="of torch; default 1")
    parser.add_argument("--device", default="cpu", help="default cpu")
    parser.add_argument("--models", default=",".join(models.FAMILIES), help="for the suite of models; default all")
    parser.add_argument("--tokens", type=int, help="of the videos of models and blocks, about; default 4,096")
    parser.add_argument("--dtypes", default="float32,bfloat16", help="of models and blocks; default both")
    parser.add_argument("--backends", default="auto", help="for the suite of models, of our attention; default auto")
    parser.add_argument("--vaes", default=",".join(vae.VAES), help="for the suite of autoencoders; default all")
    parser.add_argument("--size", default="9x128x128", help="of their videos, frames x height x width")
    parser.add_argument(
        "--one-layer", action="store_true", help="for the suite of models: one of each kind, to save memory"
    )
    parser.add_argument("--fused", action="store_true", help="for the suite of models: ours with fused kernels")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write one JSON file a suite there")
    arguments = parser.parse_args()
    chosen = arguments.suites or list(SUITES)
    if strange := sorted(set(arguments.models.split(",")) - set(models.FAMILIES)):
        parser.error(f"unknown models {strange}; the models are {', '.join(models.FAMILIES)}")
    if strange := sorted(set(arguments.vaes.split(",")) - set(vae.VAES)):
        parser.error(f"unknown autoencoders {strange}; they are {', '.join(vae.VAES)}")
    if unknown := sorted(set(chosen) - set(SUITES)):
        parser.error(f"unknown suites {unknown}; the suites are {', '.join(SUITES)}")
    if arguments.rounds < 2 or arguments.threads < 1:
        parser.error(f"at least 2 rounds and 1 thread are needed, got {arguments.rounds} and {arguments.threads}")
    torch.set_num_threads(arguments.threads)
    lists = [text.split(",") for text in (arguments.models, arguments.dtypes, arguments.backends)]
    runs = {
        "attention": run_attention,
        "blocks": partial(run_blocks, lists[1], arguments.tokens),
        "models": partial(run_models_of, *lists, arguments.tokens, arguments.fused, arguments.one_layer),
        "navit": run_navit,
        "overhead": run_overhead,
        "papers": run_papers,
        "samplers": run_samplers,
        "vae": partial(run_vae, arguments.vaes.split(","), lists[1], arguments.size),
        "video_dit": run_video_dit,
    }
    right = [runs[name](arguments.device, arguments.rounds, arguments.out) for name in chosen]
    return 0 if all(right) else 1


def run_attention(device: str, rounds: int, out: Path | None) -> bool:
    document = run_plan(attention.plan(device, rounds), None if out is None else out / "attention.json")
    print(report(document), flush=True)
    return all(row["status"] == "ok" for row in document["rows"])


def run_models_of(
    names: list[str],
    dtypes: list[str],
    backends: list[str],
    tokens: int | None,
    fused: bool,
    one_layer: bool,
    device: str,
    rounds: int,
    out: Path | None,
) -> bool:
    if device != "cpu":
        raise SystemExit("the suite of models runs on the CPU")
    results = []
    for result in models.compare_models(names, dtypes, backends, [False, True], rounds, tokens, fused, one_layer):
        results.append(result)
        print(models.report_models([result]).splitlines()[-3], flush=True)
        if out is not None:
            document = {"environment": environment(torch.device(device)), "results": [asdict(each) for each in results]}
            write_json(out / ("models-fused.json" if fused else "models.json"), document)
    print("\n" + models.report_models(results), flush=True)
    return True


def run_blocks(dtypes: list[str], tokens: int | None, device: str, rounds: int, out: Path | None) -> bool:
    lines: list[blocks.Timed] = []
    for group in blocks.compare_blocks(device, dtypes, rounds, tokens):
        lines += group
        print("\n" + blocks.report_blocks(group), flush=True)
        if out is not None:
            document = {"environment": environment(torch.device(device)), "results": [asdict(line) for line in lines]}
            write_json(out / "blocks.json", document)
    return True


def run_navit(device: str, rounds: int, out: Path | None) -> bool:
    results = run_groups("navit", navit.cases(device), device, rounds, out)
    print("\nTimes the first of the group, round by round: median (quartiles)", flush=True)
    for first in (result for result in results if result.name == "packed, fused"):
        for other in (result for result in results if result.group == first.group and result is not first):
            if first.seconds is not None and other.seconds is not None:
                found = summary([a / b for a, b in zip(other.seconds, first.seconds, strict=True)])
                print(f"{other.name}: {found.median:.2f} ({found.low:.2f} to {found.high:.2f})", flush=True)
    return all(result.right for result in results)


def run_overhead(device: str, rounds: int, out: Path | None) -> bool:
    results = run_groups("overhead", overhead.cases(device), device, rounds, out, time.process_time)
    for loop, attend in zip(results[::2], results[1::2], strict=True):
        if loop.ms is not None and attend.ms is not None:
            assert loop.seconds is not None
            assert attend.seconds is not None
            median, least = (attend.ms - loop.ms) / 1e3, min(attend.seconds) - min(loop.seconds)
            median, least = (1e6 * seconds / overhead.CALLS for seconds in (median, least))
            print(f"{loop.group}: {median:+.1f} µs a call, {least:+.1f} by the fastest samples", flush=True)
    return all(result.right for result in results)


def run_papers(device: str, rounds: int, out: Path | None) -> bool:
    results = run_groups("papers", papers.cases(device), device, rounds, out)
    found = papers.speedups(results)
    for group, name, ratio, low, high in found:
        print(f"{group}, {name}: {ratio:.2f} times as fast as theirs ({low:.2f} to {high:.2f})", flush=True)
    for kind in dict.fromkeys(name for _, name, *_ in found):
        mean = geometric_mean([ratio for _, name, ratio, *_ in found if name == kind])
        print(f"{kind}: {mean:.2f} in the geometric mean", flush=True)
    return all(result.right for result in results)


def run_samplers(device: str, rounds: int, out: Path | None) -> bool:
    results = run_groups("samplers", samplers.cases(device), device, rounds, out)
    for theirs, ours in zip(results[::2], results[1::2], strict=True):
        if theirs.ms is not None and ours.ms is not None:
            steps = f"{1000 * ours.ms / samplers.STEPS:.0f} against {1000 * theirs.ms / samplers.STEPS:.0f} µs"
            print(f"{ours.group}: {ours.ms / theirs.ms:.2f} of theirs, {steps} a step", flush=True)
    return all(result.right for result in results)


def run_vae(names: list[str], dtypes: list[str], size: str, device: str, rounds: int, out: Path | None) -> bool:
    frames, height, width = map(int, size.split("x"))
    lines: list[vae.Timed] = []
    for line in vae.compare_vaes(names, dtypes, rounds, (frames, height, width), device):
        lines.append(line)
        print(vae.report_vaes([line]).splitlines()[-1], flush=True)
        if out is not None:
            document = {"environment": environment(torch.device(device)), "results": [asdict(each) for each in lines]}
            write_json(out / "vae.json", document)
    print("\n" + vae.report_vaes(lines), flush=True)
    return True


def run_video_dit(device: str, rounds: int, out: Path | None) -> bool:
    return all(result.right for result in run_groups("video_dit", video_dit.cases(device), device, rounds, out))


def run_groups(
    name: str,
    groups: Iterable[Sequence[Case]],
    device: str,
    rounds: int,
    out: Path | None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Result]:
    """Measure and print each group; write all of them."""
    results = []
    for cases in groups:
        group = measure(cases, rounds, clock)
        print("\n" + table(group), flush=True)
        results += group
    if out is not None:
        write_json(out / f"{name}.json", as_json(results, device))
    return results


if __name__ == "__main__":
    sys.exit(main())
