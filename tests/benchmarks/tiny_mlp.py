"""One training step of an MLP 64-128-10 on 32 rows: float32, cross-entropy, SGD."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from .environment import TORCH_INSTALLED, blas_threads
from .timing import Step, Worker, interleaved, line, ratio, results

ROUNDS = 30
SIZES = (64, 128, 10)
ROWS = 32
BATCHES = 32
LR = 0.01
CHECKED_STEPS = 10
TOLERANCE = 1e-5
BASELINE = "hand-written NumPy"
TUNED = "NumPy tuned in place"
BARS = {"nn": "bar: at most 1.1 x", "nn, captured": "bar: at most 0.7 x"}

TARGETS = ("class indices", "one-hot rows")


def initial_parameters() -> list[np.ndarray]:
    """W1, b1, W2, b2, the weights (in, out)."""
    rng = np.random.default_rng(0)
    parameters = []
    for fan_in, fan_out in itertools.pairwise(SIZES):
        weight = rng.standard_normal((fan_in, fan_out)) / np.sqrt(fan_in)
        parameters += [weight.astype(np.float32), np.zeros(fan_out, np.float32)]
    return parameters


def batches(targets: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Random rows with random labels: hard to learn, so that the loss stays away from 0 in thousands of steps."""
    rng = np.random.default_rng(1)
    X = rng.standard_normal((BATCHES, ROWS, SIZES[0])).astype(np.float32)
    y = rng.integers(0, SIZES[-1], (BATCHES, ROWS))
    return list(zip(X, y if targets == "class indices" else np.eye(SIZES[-1], dtype=np.float32)[y], strict=True))


def numpy_step(targets: str) -> Step:
    """The formulas as they stand in demos/mlp_numpy.py, without its checks."""
    W1, b1, W2, b2 = initial_parameters()
    data = itertools.cycle(batches(targets))
    one_hot = targets == "one-hot rows"

    def step() -> Any:
        X, y = next(data)
        n = len(X)
        z1 = X @ W1 + b1
        a1 = np.maximum(z1, 0)
        z2 = a1 @ W2 + b2
        shifted = z2 - z2.max(axis=1, keepdims=True)
        e = np.exp(shifted)
        total = e.sum(axis=1, keepdims=True)
        log_p = shifted - np.log(total)
        p = e / total
        if one_hot:
            loss = -(y * log_p).sum() / n
            delta = (p - y) / n
        else:
            rows = np.arange(n)
            loss = -log_p[rows, y].sum() / n
            p[rows, y] -= 1
            delta = p / n
        dz1 = (delta @ W2.T) * (z1 > 0)
        for parameter, gradient in (
            (W1, X.T @ dz1),
            (b1, dz1.sum(axis=0)),
            (W2, a1.T @ delta),
            (b2, delta.sum(axis=0)),
        ):
            parameter -= LR * gradient
        return loss

    return step


def tuned_step(targets: str) -> Step:
    """What one writes to have it fast: in place where possible, constants made beforehand."""
    W1, b1, W2, b2 = initial_parameters()
    data = itertools.cycle(batches(targets))
    rows = np.arange(ROWS)
    zeros = np.zeros(SIZES[1], np.float32)  # faster than the scalar 0 in maximum
    one_hot = targets == "one-hot rows"

    def step() -> Any:
        X, y = next(data)
        a = X @ W1
        a += b1
        np.maximum(a, zeros, out=a)
        z = a @ W2
        z += b2
        z -= z.max(axis=1, keepdims=True)
        d = np.exp(z)
        total = d.sum(axis=1, keepdims=True)
        correct = (z * y).sum() if one_hot else z[rows, y].sum()
        loss = (np.log(total).sum() - correct) / ROWS

        d /= total  # softmax
        if one_hot:
            d -= y
        else:
            d[rows, y] -= 1
        d /= ROWS
        da = d @ W2.T
        da *= a > 0
        for parameter, gradient in (
            (W1, X.T @ da),
            (b1, da.sum(axis=0)),
            (W2, a.T @ d),
            (b2, d.sum(axis=0)),
        ):
            gradient *= LR
            parameter -= gradient
        return loss

    return step


def nn_step(targets: str, captured: bool = False) -> Step:
    """The engine as a user writes it, with layers, loss and optimiser."""
    import microgradnd as mg
    import nn

    model = nn.MLP(SIZES)
    for parameter, values in zip(model.parameters(), initial_parameters(), strict=True):
        parameter.data = values
    optimizer = nn.SGD(model.parameters(), lr=LR)
    data = itertools.cycle(batches(targets))

    def train(X: Any, y: Any) -> Any:
        optimizer.zero_grad()
        loss = nn.cross_entropy(model(X), y)
        loss.backward()
        optimizer.step()
        return loss

    if captured:
        train = mg.capture(train)
    return lambda: train(*next(data))


def bare_step(targets: str) -> Step:
    """The engine's operations alone, with the update written out."""
    import microgradnd as mg

    parameters = [mg.tensor(values, requires_grad=True) for values in initial_parameters()]
    W1, b1, W2, b2 = parameters
    data = itertools.cycle(batches(targets))

    def step() -> Any:
        X, y = next(data)
        loss = mg.cross_entropy(mg.linear(mg.relu(mg.linear(X, W1, b1)), W2, b2), y)
        loss.backward()
        for parameter in parameters:
            parameter.data -= LR * parameter.grad.data  # type: ignore[union-attr]
            parameter.zero_grad()
        return loss

    return step


def torch_step(targets: str, threads: int) -> Step:
    """PyTorch, eager, as its tutorials write it."""
    import torch

    torch.set_num_threads(threads)
    model = torch.nn.Sequential(
        torch.nn.Linear(SIZES[0], SIZES[1]), torch.nn.ReLU(), torch.nn.Linear(SIZES[1], SIZES[2])
    )
    with torch.no_grad():
        for parameter, values in zip(model.parameters(), initial_parameters(), strict=True):
            parameter.copy_(torch.from_numpy(values.T))  # its weights are (out, in)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    data = itertools.cycle([(torch.from_numpy(X), torch.from_numpy(y)) for X, y in batches(targets)])

    def step() -> Any:
        X, y = next(data)
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(X), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def numpy_steps() -> dict[str, Step]:
    return {targets: numpy_step(targets) for targets in TARGETS}


def tuned_steps() -> dict[str, Step]:
    return {targets: tuned_step(targets) for targets in TARGETS}


def nn_steps() -> dict[str, Step]:
    return {targets: nn_step(targets) for targets in TARGETS}


def captured_steps() -> dict[str, Step]:
    return {targets: nn_step(targets, captured=True) for targets in TARGETS}


def bare_steps() -> dict[str, Step]:
    return {targets: bare_step(targets) for targets in TARGETS}


def torch_steps() -> dict[str, Step]:
    return {targets: torch_step(targets, blas_threads()) for targets in TARGETS}


def torch_steps_of_one_thread() -> dict[str, Step]:
    return {targets: torch_step(targets, 1) for targets in TARGETS}


def run(rounds: int) -> None:
    workers = {
        BASELINE: Worker(numpy_steps),
        TUNED: Worker(tuned_steps),
        "nn": Worker(nn_steps),
        "nn, captured": Worker(captured_steps),
        "mg, manual update": Worker(bare_steps),
    }
    if TORCH_INSTALLED:
        # With as many threads as NumPy's BLAS, and with one: where another process takes a core, OpenMP's
        # threads wait for each other most of the time, and a step takes up to a thousand times as long.
        workers["PyTorch"] = Worker(torch_steps)
        workers["PyTorch, 1 thread"] = Worker(torch_steps_of_one_thread)
    else:
        print("  PyTorch is not installed")
    for targets in TARGETS:
        losses = {who: np.array(worker(results, targets, CHECKED_STEPS)) for who, worker in workers.items()}
        for who, values in losses.items():
            difference = np.abs(values - losses[BASELINE]).max()
            if not difference <= TOLERANCE:  # NaN is not
                raise RuntimeError(f"tiny_mlp: {who} computes other losses: {values}, expected {losses[BASELINE]}")
        print(f"  {targets}: the first {CHECKED_STEPS} losses agree within {TOLERANCE}")
    times = interleaved(workers, TARGETS, rounds, turn=50, pause=50)
    for worker in workers.values():
        worker.close()
    for targets in TARGETS:
        for who in workers:
            figure = "" if who == BASELINE else ratio(times[targets, who], times[targets, BASELINE], "NumPy")
            line(f"{targets}, {who}", times[targets, who], "us", figure, BARS.get(who, ""))
