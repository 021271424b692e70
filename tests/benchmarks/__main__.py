"""``python -m tests.benchmarks [--rounds N] [name ...]``: runs the named benchmarks, all by default."""

from __future__ import annotations

import argparse

from . import (
    attention,
    char_lm,
    depth,
    generation,
    gpu,
    import_time,
    kernels,
    launches,
    memory,
    overhead,
    products,
    scaling,
    speed,
    startup,
    tiny_mlp,
)
from .environment import print_environment

BENCHMARKS = {
    "overhead": overhead,
    "tiny_mlp": tiny_mlp,
    "import_time": import_time,
    "depth": depth,
    "memory": memory,
    "attention": attention,
    "generation": generation,
    "char_lm": char_lm,
    "speed": speed,
    "kernels": kernels,
    "products": products,
    "startup": startup,
    "scaling": scaling,
    "gpu": gpu,
    "launches": launches,
}


def main() -> None:
    parser = argparse.ArgumentParser("python -m tests.benchmarks", description="Timed comparisons.")
    parser.add_argument("names", nargs="*", metavar="name", help=f"any of {', '.join(BENCHMARKS)}; default: all")
    parser.add_argument("--rounds", type=int, help="how often each candidate has its turn")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    if arguments.rounds is not None and arguments.rounds < 1:
        parser.error("--rounds must be at least 1")
    print_environment()
    for name in arguments.names or BENCHMARKS:
        benchmark = BENCHMARKS[name]
        print(f"\n{name}: {(benchmark.__doc__ or '').splitlines()[0]}", flush=True)
        benchmark.run(arguments.rounds or benchmark.ROUNDS)


if __name__ == "__main__":
    main()
