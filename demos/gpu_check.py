"""Is everything right on this machine's GPU, and how fast is it? One page to paste into a report.

The tests have run on the real CuPy over host memory, which proves values, dtypes, errors and counts, and on no GPU:
races, streams, a device's rounding and speed show on a device alone. This runs, in a clone with its extras installed,

    pip install -e '.[cuda12,test,demos]'          or cuda13
    python demos/gpu_check.py

1. what is there: versions, the device, its memory;
2. the suite on it: python -m pytest --device cuda;
3. the multilayer perceptron of demos/mlp_engine.py, trained on the digits on CPU and GPU: the same losses and accuracy;
4. the benchmarks' table on it, beside PyTorch CUDA where that is installed.

It ends with status 0 if all is well, 1 if anything failed, and 2 where there is no GPU.
"""

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import microgradnd as mg

ROOT = Path(__file__).resolve().parent.parent
SHOWN = 40  # lines of the suite's failures
LOSSES_AGREE = 5e-3  # relative, after 30 epochs of another rounding


def run(*command: str) -> tuple[int, str]:
    """A Python command in the clone: its status and what it printed."""
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    return done.returncode, done.stdout


def heading(text: str) -> None:
    print(f"\n## {text}\n", flush=True)


def show_machine() -> None:
    import cupy

    mg.show_config()
    memory = mg.memory_report()["cuda:0"]
    print(f"{'memory':<12} {memory['free'] / 2**30:.1f} of {memory['total'] / 2**30:.1f} GiB free")
    print(
        f"{'CUDA':<12} runtime {cupy.cuda.runtime.runtimeGetVersion()}, driver {cupy.cuda.runtime.driverGetVersion()}"
    )
    print(f"{'capability':<12} {cupy.cuda.Device().compute_capability}")


def check_suite() -> bool:
    status, out = run("-m", "pytest", "-q", "--device", "cuda")
    lines = out.splitlines()
    for line in [line for line in lines if line.startswith(("FAILED", "ERROR", "SKIPPED"))][:SHOWN]:
        print(line)
    print(lines[-1] if lines else "no output")
    return status == 0


def check_digits() -> bool:
    """Losses and accuracies of mlp_engine.py on both devices."""
    found = {}
    for device in ("cpu", "cuda"):
        start = time.perf_counter()
        status, out = run("demos/mlp_engine.py", "--device", device)
        last = out.splitlines()[-1] if out else "no output"
        print(f"{device:<5} {last}   {time.perf_counter() - start:.1f} s")
        found[device] = [float(x) for x in re.findall(r"\d+\.\d+", last)] if status == 0 else []
    cpu, cuda = found.values()
    return (
        bool(cpu)
        and len(cpu) == len(cuda)
        and all(abs(a - b) <= LOSSES_AGREE * max(1, abs(a)) for a, b in zip(cpu, cuda, strict=True))
    )


def show_times() -> bool:
    status, out = run("-m", "tests.benchmarks", "gpu")
    print(out.rstrip())
    return status == 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Is everything right on this machine's GPU, and how fast is it?")
    parser.add_argument("--no-times", action="store_true", help="leave the benchmarks out")
    args = parser.parse_args(argv)
    if not mg.cuda_is_available():
        print("gpu_check: there is no GPU here that CuPy can use, or no CuPy; cupy.show_config() tells what it sees")
        return 2
    heading("machine")
    show_machine()
    parts = {"suite": check_suite, "digits": check_digits} | ({} if args.no_times else {"times": show_times})
    results = {}
    for name, check in parts.items():
        heading(name)
        results[name] = check()
    heading("result")
    for name, well in results.items():
        print(f"{name:<12} {'well' if well else 'FAILED'}")
    return 0 if all(results.values()) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
