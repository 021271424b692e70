"""The multi-class perceptron reads handwritten digits.

Each of k classes has a weight vector and a bias; the class with the largest score wins:

    prediction = argmax_c (W[c] . x + b[c])          ties go to the lowest class

A mistake takes the input away from the class that won and gives it to the class that should have:

    W[prediction] -= lr * x        b[prediction] -= lr
    W[target]     += lr * x        b[target]     += lr

The convergence theorem of the binary perceptron carries over (Kesler's construction; Duda and Hart, 1973).
With x' = (x, 1), a separator U of Frobenius norm 1 and gamma = min (U[target] - U[c]) . x' over all
examples and wrong classes c, the number of mistakes from a zero start is at most 2 (R / gamma)^2. The 2
is there because a mistake moves two weight vectors.

The demo trains on the 8x8 digits of scikit-learn (1,797 scans) and draws each class's weights as an image:
what the class looks for in red, what it rejects in blue. Run it with

    python demos/multiclass_perceptron.py
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

LR = 1.0
EPOCHS = 50  # upper limit; training stops at the first epoch without a mistake
TEST_SHARE = 0.2
SEED = 0
OUT = "multiclass_perceptron.png"


def scores(W: np.ndarray, b: np.ndarray, X: np.ndarray) -> np.ndarray:
    """Scores of the classes: W (k, d), b (k,), X (n, d) -> (n, k)."""
    return X @ W.T + b


def predict(W: np.ndarray, b: np.ndarray, X: np.ndarray) -> np.ndarray:
    """The winning class of each row: (n, d) -> (n,). numpy's argmax gives a tie to the lowest index."""
    return np.argmax(scores(W, b, X), axis=1)


def accuracy(W: np.ndarray, b: np.ndarray, X: np.ndarray, targets: np.ndarray) -> float:
    return float(np.mean(predict(W, b, X) == targets))


def train_epoch(W: np.ndarray, b: np.ndarray, X: np.ndarray, targets: np.ndarray, lr: float = LR) -> int:
    """Show every row once, in order, changing W and b in place; the number of mistakes."""
    mistakes = 0
    for x, target in zip(X, targets, strict=True):
        prediction = np.argmax(W @ x + b)
        if prediction != target:
            W[prediction] -= lr * x
            b[prediction] -= lr
            W[target] += lr * x
            b[target] += lr
            mistakes += 1
    return mistakes


def fit(
    X: np.ndarray, targets: np.ndarray, n_classes: int, lr: float = LR, epochs: int = EPOCHS
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Train from zero; stop after `epochs` epochs, or at the first one without a mistake.

    Returns W (k, d), b (k,) and the number of mistakes in each epoch.
    """
    X, targets = check_data(X, targets, n_classes)
    if not 0 < lr < math.inf:
        raise ValueError(f"lr must be positive and finite, got {lr}")
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {epochs}")
    W = np.zeros((n_classes, X.shape[1]))
    b = np.zeros(n_classes)
    mistakes: list[int] = []
    for _ in range(epochs):
        mistakes.append(train_epoch(W, b, X, targets, lr))
        if mistakes[-1] == 0:
            break
    return W, b, mistakes


def mistake_bound(X: np.ndarray, targets: np.ndarray, W: np.ndarray, b: np.ndarray) -> float:
    """2 (R / gamma)^2 for a separator W (k, d), b (k,); infinite if it leaves no margin."""
    X, targets = check_data(X, targets, len(W))
    rows = np.arange(len(X))
    lead = scores(W, b, X)
    lead = lead[rows, targets][:, None] - lead  # (n, k), of the right class over each class
    lead[rows, targets] = np.inf  # a class does not compete with itself
    gamma = lead.min() / np.sqrt(np.sum(W**2) + np.sum(b**2))
    if not gamma > 0:
        return math.inf
    R_squared = np.max(np.sum(X**2, axis=1) + 1)  # + 1: the constant feature of the bias
    return float(2 * R_squared / gamma**2)


def check_data(X: np.ndarray, targets: np.ndarray, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    X = np.asarray(X, dtype=np.float64)
    targets = np.asarray(targets)
    if n_classes < 2:
        raise ValueError(f"need at least 2 classes, got {n_classes}")
    if X.ndim != 2 or X.size == 0:
        raise ValueError(f"X must have shape (n, d) with n, d >= 1, got {X.shape}")
    if targets.shape != (len(X),):
        raise ValueError(f"X has shape {X.shape}, so the targets need shape {(len(X),)}, got {targets.shape}")
    # A negative label would be a valid index from the end, and train the wrong class silently.
    if not np.isin(targets, np.arange(n_classes)).all():
        raise ValueError(f"targets must be whole numbers 0 .. {n_classes - 1}, got {np.unique(targets).tolist()}")
    if not np.isfinite(X).all():
        raise ValueError("X must be finite")
    return X, targets.astype(np.int64)


def split(
    rng: np.random.Generator, X: np.ndarray, targets: np.ndarray, test_share: float = TEST_SHARE
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Shuffle the rows and cut off the test set: X_train, targets_train, X_test, targets_test."""
    order = rng.permutation(len(X))
    n_test = round(test_share * len(X))
    test, train = order[:n_test], order[n_test:]
    return X[train], targets[train], X[test], targets[test]


def standardise(X_train: np.ndarray, X_test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean 0 and standard deviation 1 per feature, both measured on the training set alone."""
    mean, std = X_train.mean(axis=0), X_train.std(axis=0)
    std[std == 0] = 1  # a pixel that is blank in every training scan stays 0
    return (X_train - mean) / std, (X_test - mean) / std


def load_digits(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    from sklearn import datasets

    X, targets = datasets.load_digits(return_X_y=True)  # (1797, 64), (1797,)
    X_train, targets_train, X_test, targets_test = split(rng, X, targets)
    X_train, X_test = standardise(X_train, X_test)
    return X_train, targets_train, X_test, targets_test


def plot(W: np.ndarray, mistakes: list[int], out: Path) -> None:
    # A Figure made without pyplot is drawn by Agg: no window and no display are needed.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(12, 4), layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1.7, 1))[0]

    axes = left.subplots(2, 5)
    limit = np.abs(W).max()  # one symmetric scale, so that the classes compare and white is zero
    for digit, axis in enumerate(axes.flat):
        image = axis.imshow(W[digit].reshape(8, 8), cmap="RdBu_r", vmin=-limit, vmax=limit)
        axis.set(title=f"{digit}", xticks=[], yticks=[])
    left.colorbar(image, ax=axes, label="weight of the pixel", shrink=0.8)
    left.suptitle("weight vector of each class")

    axis = right.subplots()
    axis.plot(range(1, len(mistakes) + 1), mistakes, marker="o", markersize=4, clip_on=False)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axis.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axis.set(xlabel="epoch", ylabel="mistakes on the training set", ylim=(0, None))
    axis.grid(alpha=0.3)
    right.suptitle("mistakes per epoch")
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
    parser = argparse.ArgumentParser(description="The multi-class perceptron on handwritten digits.")
    parser.add_argument("--lr", type=float, default=LR, help="learning rate (%(default)s)")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="most epochs (%(default)s)")
    parser.add_argument("--seed", type=int, default=SEED, help="seed of the split (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path(OUT), help="picture to write (%(default)s)")
    args = parser.parse_args(argv)
    if not 0 < args.lr < math.inf:
        parser.error(f"--lr must be positive and finite, got {args.lr}")
    if args.epochs < 1:
        parser.error(f"--epochs must be at least 1, got {args.epochs}")
    if args.seed < 0:
        parser.error(f"--seed must not be negative, got {args.seed}")
    check_out(parser, args.out)
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    import matplotlib.figure  # noqa: F401  (needed at the end; to be missed now)

    X, targets, X_test, targets_test = load_digits(np.random.default_rng(args.seed))

    W = np.zeros((10, X.shape[1]))  # (k, d)
    b = np.zeros(10)  # (k,)
    mistakes: list[int] = []
    for epoch in range(1, args.epochs + 1):
        mistakes.append(train_epoch(W, b, X, targets, args.lr))
        print(
            f"epoch {epoch:3d}  mistakes {mistakes[-1]:4d}  train accuracy {accuracy(W, b, X, targets):.4f}  "
            f"test accuracy {accuracy(W, b, X_test, targets_test):.4f}"
        )
        if mistakes[-1] == 0:
            # The weights found are a separator, so the theorem applies to the very run that found them.
            # The bound is loose: training stops at the first separator, whose margin is thin.
            bound = mistake_bound(X, targets, W, b)
            print(f"converged: {sum(mistakes)} mistakes in all, at most {bound:.0f} by this separator's thin margin")
            break
    else:
        print(f"not converged in {args.epochs} epochs: {sum(mistakes)} mistakes in all")

    plot(W, mistakes, args.out)
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
