"""The perceptron, and the theorem that it must converge.

A perceptron is one neuron with a hard threshold:

    prediction = step(w . x + b)          step(z) = 1 if z > 0, else 0

It learns from its mistakes alone. It goes through the examples in order, and wherever the prediction
differs from the target (0 or 1) it moves its weights and bias:

    w += lr * (target - prediction) * x
    b += lr * (target - prediction)

Novikoff (1962) and Block (1962) proved that this cannot go on for ever when a hyperplane separates the
two classes. Fold the bias into the weights, x' = (x, 1), and start from zero. Let R = max ||x'||, and let
gamma = min y (u . x') / ||u|| be the margin of any separator u, with y = -1 or 1 for target 0 or 1. Then

    the number of mistakes is at most (R / gamma)^2,

whatever the order of the examples, their number, the dimension and the learning rate. From a zero start
lr only scales w and b by a common factor, which no threshold at zero can notice.

The demo trains on one separable set in the plane and draws the learned line; then it counts the mistakes
on many random separable sets and sets each count against its bound. Run it with

    python demos/perceptron.py
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

N_POINTS = 100  # points in the 2-D set
MARGIN = 0.1  # every point of the 2-D set is at least this far from the separator
LR = 1.0
EPOCHS = 1000  # upper limit; training stops at the first epoch without a mistake
N_SETS = 300  # random sets that are held against the bound
SEED = 0
OUT = "perceptron.png"


def step(z: np.ndarray | float) -> np.ndarray:
    """Heaviside step. A score of exactly zero gives 0."""
    return np.where(np.asarray(z) > 0, 1, 0)


def predict(w: np.ndarray, b: float, X: np.ndarray) -> np.ndarray:
    """Predictions, 0 or 1, for the rows of X: (n, d) -> (n,)."""
    return step(X @ w + b)


def update(w: np.ndarray, b: float, x: np.ndarray, target: int, lr: float = LR) -> tuple[np.ndarray, float, int]:
    """Show one example to the perceptron: the new w and b, and the error target - prediction."""
    prediction = 1 if x @ w + b > 0 else 0
    error = int(target) - prediction  # -1, 0 or 1
    if error == 0:
        return w, b, 0
    return w + lr * error * x, b + lr * error, error


def fit(
    X: np.ndarray, targets: np.ndarray, lr: float = LR, epochs: int = EPOCHS
) -> tuple[np.ndarray, float, list[int]]:
    """Train from zero; stop after `epochs` epochs, or at the first one without a mistake.

    Returns w (d,), b, and the number of mistakes in each epoch. The training converged if the last of
    these numbers is 0.
    """
    X, targets = check_data(X, targets)
    if not 0 < lr < math.inf:
        raise ValueError(f"lr must be positive and finite, got {lr}")
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {epochs}")
    w = np.zeros(X.shape[1])  # (d,)
    b = 0.0
    mistakes: list[int] = []
    for _ in range(epochs):
        mistakes.append(0)
        for x, target in zip(X, targets, strict=True):
            w, b, error = update(w, b, x, target, lr)
            mistakes[-1] += abs(error)
        if mistakes[-1] == 0:
            break
    return w, b, mistakes


def mistake_bound(X: np.ndarray, targets: np.ndarray, separator: np.ndarray) -> float:
    """(R / gamma)^2 for a separator u (d + 1,) whose last entry is the bias."""
    X, targets = check_data(X, targets)
    if separator.shape != (X.shape[1] + 1,):
        raise ValueError(
            f"X has shape {X.shape}, so the separator needs {X.shape[1] + 1} entries (the bias last), "
            f"but has shape {separator.shape}"
        )
    X1 = np.column_stack([X, np.ones(len(X))])  # (n, d + 1), the bias as a constant feature
    sign = 2 * targets - 1  # 0, 1 -> -1, 1
    gamma = np.min(sign * (X1 @ separator)) / np.linalg.norm(separator)
    if not gamma > 0:
        raise ValueError(f"the separator does not separate the data: its margin is {gamma}")
    R = np.max(np.linalg.norm(X1, axis=1))
    return float((R / gamma) ** 2)


def separable_data(
    rng: np.random.Generator, n: int, d: int, margin: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """n points in d dimensions, their targets, and a unit separator (d + 1,) with at least this margin."""
    if n < 1 or d < 1 or not 0 < margin < math.inf:
        raise ValueError(f"need n >= 1, d >= 1 and a positive margin, got n={n}, d={d}, margin={margin}")
    normal = rng.standard_normal(d)
    normal /= np.linalg.norm(normal)
    offset = 0.5 * rng.standard_normal()  # small, so that the hyperplane cuts through the cloud of points
    separator = np.append(normal, offset) / np.hypot(1.0, offset)  # (d + 1,), unit length
    w, b = separator[:-1], separator[-1]

    X = rng.standard_normal((n, d))
    targets = predict(w, b, X)
    # Moving x by t w / ||w||^2 changes w . x + b by exactly t: each point is pushed away from the
    # hyperplane, on its own side, by the margin.
    X += np.outer(2 * targets - 1, margin * w / (w @ w))
    return X, targets, separator


def check_data(X: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    X = np.asarray(X, dtype=np.float64)
    targets = np.asarray(targets)
    if X.ndim != 2 or X.size == 0:
        raise ValueError(f"X must have shape (n, d) with n, d >= 1, got {X.shape}")
    if targets.shape != (len(X),):
        raise ValueError(f"X has shape {X.shape}, so the targets need shape {(len(X),)}, got {targets.shape}")
    if not np.isin(targets, (0, 1)).all():
        raise ValueError(f"targets must be 0 or 1, got {np.unique(targets).tolist()}")
    if not np.isfinite(X).all():
        raise ValueError("X must be finite")
    return X, targets.astype(np.int64)


def random_sets(rng: np.random.Generator, n_sets: int, lr: float, epochs: int) -> np.ndarray:
    """Mistakes made and mistakes allowed on sets of random size, dimension and margin: (n_sets, 2)."""
    from tqdm import tqdm

    counts = np.empty((n_sets, 2))
    for i in tqdm(range(n_sets), desc="random sets", unit="set"):
        n = int(rng.integers(10, 101))
        d = int(rng.integers(1, 21))
        margin = 10 ** rng.uniform(-2, 0.5)
        X, targets, separator = separable_data(rng, n, d, margin)
        mistakes = fit(X, targets, lr, epochs)[2]
        counts[i] = sum(mistakes), mistake_bound(X, targets, separator)
    return counts


def plot(
    X: np.ndarray, targets: np.ndarray, w: np.ndarray, b: float, title: str, counts: np.ndarray, out: Path
) -> None:
    # A Figure made without pyplot is drawn by Agg: no window and no display are needed.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5.4), layout="constrained")
    left, right = figure.subplots(1, 2)

    for target, marker, colour in ((0, "o", "tab:blue"), (1, "s", "tab:orange")):
        rows = X[targets == target]
        left.scatter(rows[:, 0], rows[:, 1], s=22, marker=marker, color=colour, label=f"target {target}")
    low, high = X.min(axis=0) - 0.5, X.max(axis=0) + 0.5
    if w.any():  # w is still zero when no mistake was ever made: there is no line then
        # The line w . x + b = 0 through its point nearest to the origin, in both directions far enough.
        foot, along = -b * w / (w @ w), np.array([-w[1], w[0]]) / np.linalg.norm(w)
        reach = np.linalg.norm(foot) + np.linalg.norm(np.maximum(abs(low), abs(high)))
        ends = np.stack([foot - reach * along, foot + reach * along])  # (2, 2)
        left.plot(ends[:, 0], ends[:, 1], color="black", label="w · x + b = 0")
    left.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), xlabel="$x_1$", ylabel="$x_2$", title=title)
    left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3)  # below: it would hide points

    # A logarithmic axis has no place for the sets that were learned without a single mistake.
    shown = counts[counts[:, 0] > 0]
    top = 2 * counts[:, 1].max()
    right.plot([0.7, top], [0.7, top], color="black", label="mistakes = bound")
    right.scatter(shown[:, 1], shown[:, 0], s=14, alpha=0.6, color="tab:green", label="one random set")
    right.set(xscale="log", yscale="log", xlim=(0.7, top), ylim=(0.7, top))
    right.set(xlabel="bound $(R/\\gamma)^2$", ylabel="mistakes made")
    right.set_title(f"{len(shown)} random separable sets against their bound")
    right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)
    right.grid(alpha=0.3)
    figure.savefig(out, dpi=150)


def check_out(parser: argparse.ArgumentParser, out: Path) -> None:
    """Refuse a picture that could not be written, before any time is spent on training."""
    if out.suffix.lower() not in (".png", ".pdf", ".svg"):
        parser.error(f"--out must end in .png, .pdf or .svg, got {str(out)!r}")
    existed = out.exists()
    try:
        out.open("ab").close()  # appends nothing: a picture that is already there stays as it is
    except OSError as error:
        parser.error(f"--out {str(out)!r} cannot be written: {error.strerror}")
    if not existed:
        out.unlink()


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The perceptron and its mistake bound.")
    parser.add_argument("--points", type=int, default=N_POINTS, help="points in the 2-D set (%(default)s)")
    parser.add_argument("--margin", type=float, default=MARGIN, help="margin of the 2-D set (%(default)s)")
    parser.add_argument("--lr", type=float, default=LR, help="learning rate (%(default)s)")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="most epochs on a set (%(default)s)")
    parser.add_argument("--sets", type=int, default=N_SETS, help="random sets (%(default)s)")
    parser.add_argument("--seed", type=int, default=SEED, help="seed of all randomness (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path(OUT), help="picture to write (%(default)s)")
    args = parser.parse_args(argv)
    for name in ("points", "epochs", "sets"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    for name in ("margin", "lr"):
        if not 0 < getattr(args, name) < math.inf:
            parser.error(f"--{name} must be positive and finite, got {getattr(args, name)}")
    if args.seed < 0:
        parser.error(f"--seed must not be negative, got {args.seed}")
    check_out(parser, args.out)
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    import matplotlib.figure  # noqa: F401  (needed at the end; to be missed now)
    import tqdm  # noqa: F401

    rng = np.random.default_rng(args.seed)

    X, targets, separator = separable_data(rng, args.points, 2, args.margin)
    w, b, mistakes = fit(X, targets, args.lr, args.epochs)
    end = "converged" if mistakes[-1] == 0 else "not converged"
    bound = mistake_bound(X, targets, separator)
    summary = f"{end} at epoch {len(mistakes)}, mistakes: {sum(mistakes)}"
    print(f"2-D set: {summary}, bound: {bound:.0f}")

    counts = random_sets(rng, args.sets, args.lr, args.epochs)
    made, allowed = counts.T
    print(f"random sets: {np.sum(made <= allowed)} of {args.sets} within their bound")
    print(f"mistakes: {made.sum():.0f} in all, median {np.median(made):.0f} with bound {np.median(allowed):.0f}")
    print(f"the closest set used {np.max(made / allowed):.0%} of its bound")
    print(f"sets learned without a mistake, which the picture leaves out: {np.sum(made == 0)}")

    plot(X, targets, w, b, summary, counts, args.out)
    print(f"picture: {args.out}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except ImportError as error:
        sys.exit(f"this demo needs {error.name}, which is missing: pip install -e '.[demos]' in the clone brings it")
    except OSError as error:
        sys.exit(f"the picture could not be written: {error}")
