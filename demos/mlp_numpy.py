"""A multilayer perceptron in plain NumPy, with its gradients worked out by hand.

One hidden layer of rectified linear units and a softmax over k classes, for n rows of d features:

    z1 = X W1 + b1          (n, h)
    a1 = max(z1, 0)         (n, h)
    z2 = a1 W2 + b2         (n, k)
    p  = softmax(z2)        (n, k), each row sums to 1

The loss is the mean cross-entropy between p and the one-hot rows y. The formulas of `backward` are
the chain rule, written out one line per parameter. An autograd engine has to arrive at the same numbers
by itself, which makes this file the reference to hold it against.

The demo trains on the 8x8 digits of scikit-learn (1,797 scans) and draws the loss and the accuracy. Run
it with

    python demos/mlp_numpy.py
    python demos/mlp_numpy.py --device cuda        with CuPy's arrays, on a GPU: NumPy's functions hand them on to CuPy
"""

import argparse
import math
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

HIDDEN = 64  # units of the hidden layer
LR = 0.1
EPOCHS = 30
BATCH_SIZE = 32
TEST_SHARE = 0.2
SEED = 0
OUT = "mlp_numpy.png"

Arrays = dict[str, np.ndarray]


def init_params(rng: np.random.Generator, sizes: Sequence[int], dtype: DTypeLike = np.float64) -> Arrays:
    """W1 (d, h), b1 (h,), W2 (h, k), b2 (k,) for sizes (d, h, k).

    Weights of variance 1 / fan_in give a layer's output about the variance of its input. The numbers are
    drawn in float64 and then rounded, so that every dtype starts from the same network.
    """
    if len(sizes) != 3 or min(sizes) < 1:
        raise ValueError(f"sizes must be three positive numbers (d, h, k), got {tuple(sizes)}")
    params = {}
    for i, (fan_in, fan_out) in enumerate(pairwise(sizes), start=1):
        params[f"W{i}"] = (rng.standard_normal((fan_in, fan_out)) / np.sqrt(fan_in)).astype(dtype)
        params[f"b{i}"] = np.zeros(fan_out, dtype)
    return params


# `.real` below changes nothing for real numbers. It lets the loss be evaluated at complex parameters too,
# which gives derivatives without rounding error from a difference: f'(x) = Im f(x + ih) / h for tiny h.


def relu(z: np.ndarray) -> np.ndarray:
    return np.where(z.real > 0, z, 0)


def log_softmax(z: np.ndarray) -> np.ndarray:
    """Row by row. Subtracting the row's maximum changes nothing but keeps exp from overflowing."""
    z = z - z.real.max(axis=1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.real.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def forward(params: Arrays, X: np.ndarray) -> Arrays:
    """Every intermediate result, by name: X, z1, a1, z2 (the logits) and p (the probabilities)."""
    W1 = params["W1"]
    if X.ndim != 2 or len(X) == 0 or X.shape[1] != W1.shape[0]:
        raise ValueError(f"X has shape {X.shape}, but W1 of shape {W1.shape} needs (n, {W1.shape[0]}) with n >= 1")
    z1 = X @ W1 + params["b1"]
    a1 = relu(z1)
    z2 = a1 @ params["W2"] + params["b2"]
    return {"X": X, "z1": z1, "a1": a1, "z2": z2, "p": softmax(z2)}


def cross_entropy(z2: np.ndarray, y: np.ndarray) -> np.number:
    """Mean of -log p[target] over the rows, from the logits z2 (n, k) and one-hot rows y (n, k).

    It takes the logits because p is not enough: a probability that underflowed to zero has lost its
    logarithm, while the log-softmax of the logits is still finite.
    """
    check_one_hot(z2, y)
    return -(y.astype(z2.dtype) * log_softmax(z2)).sum() / len(y)


def backward(params: Arrays, cache: Arrays, y: np.ndarray) -> Arrays:
    """Gradients of the loss for the parameters, from the results of `forward` and one-hot rows y (n, k)."""
    X, z1, a1, p = cache["X"], cache["z1"], cache["a1"], cache["p"]
    check_one_hot(p, y)
    n = len(X)
    # The derivative of softmax and that of the logarithm cancel: for one row dL/dz2 = p - y.
    # The loss is the mean over the rows, so each of the four gradients is divided by n.
    delta = p - y.astype(p.dtype)  # (n, k)
    # z2 = a1 W2 + b2 is linear: W2 gets the outer products of inputs and errors, summed over rows by the
    # matrix product. b2 was broadcast to all rows, so its gradient gathers them again.
    dW2 = a1.T @ delta / n  # (h, k)
    db2 = delta.mean(axis=0)  # (k,)
    # Back through W2 to a1, then through the relu: slope 1 where z1 > 0, else 0 (at the kink too).
    dz1 = (delta @ params["W2"].T) * (z1 > 0)  # (n, h)
    # The first layer is linear as well, with X for its input.
    dW1 = X.T @ dz1 / n  # (d, h)
    db1 = dz1.mean(axis=0)  # (h,)
    return {"W1": dW1, "b1": db1, "W2": dW2, "b2": db2}


def sgd_step(params: Arrays, grads: Arrays, lr: float) -> None:
    """params -= lr * grads, in place."""
    for name, grad in grads.items():
        params[name] -= float(lr) * grad  # a Python float does not turn float32 into float64


def train(
    params: Arrays,
    X: np.ndarray,
    y: np.ndarray,
    lr: float,
    epochs: int,
    batch_size: int | None = None,
    rng: np.random.Generator | None = None,
) -> list[float]:
    """Gradient descent on params, in place and in their dtype; the loss at each step, before its update.

    Without a batch size each step sees all rows. With one, every epoch draws rng.permutation(n) and goes
    through consecutive slices of it; the last one may be short.
    """
    if not 0 < lr < math.inf:
        raise ValueError(f"lr must be positive and finite, got {lr}")
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {epochs}")
    if batch_size is not None and (batch_size < 1 or rng is None):
        raise ValueError(f"mini-batches need a batch size >= 1 and an rng, got {batch_size} and {rng}")
    if len(X) != len(y) or len(X) == 0:
        raise ValueError(f"X has shape {X.shape} and y has shape {y.shape}: they need as many rows, at least 1")
    X = X.astype(params["W1"].dtype, copy=False)
    n = len(X)
    losses = []
    for _ in range(epochs):
        order = np.arange(n) if batch_size is None or rng is None else rng.permutation(n)
        for start in range(0, n, batch_size or n):
            rows = order[start : start + (batch_size or n)]
            cache = forward(params, X[rows])
            losses.append(float(cross_entropy(cache["z2"], y[rows])))
            sgd_step(params, backward(params, cache, y[rows]), lr)
    return losses


def accuracy(params: Arrays, X: np.ndarray, y: np.ndarray) -> float:
    return float(np.mean(forward(params, X)["z2"].argmax(axis=1) == y.argmax(axis=1)))


def one_hot(labels: np.ndarray, k: int, dtype: DTypeLike = np.float64) -> np.ndarray:
    """(n,) labels 0 .. k - 1 -> (n, k)"""
    return (labels[:, None] == np.arange(k)).astype(dtype)


def check_one_hot(z: np.ndarray, y: np.ndarray) -> None:
    if y.shape != z.shape:
        raise ValueError(f"y has shape {y.shape}, but the output of the network has shape {z.shape}")
    if not (((y == 0) | (y == 1)).all() and (y.sum(axis=1) == 1).all()):
        raise ValueError("y must be one-hot: in each row a single 1, the rest 0")


def load_digits(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """X_train, y_train, X_test, y_test, standardised by the mean and deviation of the training set alone."""
    from sklearn import datasets

    X, labels = datasets.load_digits(return_X_y=True)  # (1797, 64), (1797,)
    y = one_hot(labels, 10)
    order = rng.permutation(len(X))
    n_test = round(TEST_SHARE * len(X))
    test, train_rows = order[:n_test], order[n_test:]
    mean, std = X[train_rows].mean(axis=0), X[train_rows].std(axis=0)
    std[std == 0] = 1  # a pixel that is blank in every training scan stays 0
    X = (X - mean) / std
    return X[train_rows], y[train_rows], X[test], y[test]


def on_device(device: str, *arrays: np.ndarray) -> list[np.ndarray]:
    """The arrays themselves, or copies of them on the GPU."""
    if device == "cpu":
        return list(arrays)
    import cupy

    return [cupy.asarray(x) for x in arrays]


def plot(losses: np.ndarray, accuracies: np.ndarray, out: Path) -> None:
    """losses (epochs, steps per epoch); accuracies (epochs, 2) on the training and test sets."""
    # A Figure made without pyplot is drawn by Agg: no window and no display are needed.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = np.arange(1, len(losses) + 1)
    steps = np.arange(1, losses.size + 1) / losses.shape[1]
    left.plot(steps, losses.ravel(), color="tab:blue", alpha=0.35, linewidth=0.8, label="each step")
    left.plot(epochs - 0.5, losses.mean(axis=1), "o-", color="tab:blue", markersize=3, label="epoch's mean")
    left.set(yscale="log", xlabel="epoch", ylabel="cross-entropy", title="training loss")
    right.plot(epochs, accuracies[:, 0], "o-", markersize=3, label="training set")
    right.plot(epochs, accuracies[:, 1], "s-", markersize=3, label="test set")
    right.set(xlabel="epoch", ylabel="accuracy", title=f"accuracy (test: {accuracies[-1, 1]:.3f} at the end)")
    for axis in (left, right):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axis.legend()
        axis.grid(alpha=0.3)
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
    parser = argparse.ArgumentParser(description="A multilayer perceptron in NumPy on handwritten digits.")
    parser.add_argument("--hidden", type=int, default=HIDDEN, help="hidden units (%(default)s)")
    parser.add_argument("--lr", type=float, default=LR, help="learning rate (%(default)s)")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="epochs (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE, help="0: all rows (%(default)s)")
    parser.add_argument("--seed", type=int, default=SEED, help="seed of all randomness (%(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="NumPy or CuPy (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path(OUT), help="picture to write (%(default)s)")
    args = parser.parse_args(argv)
    for option, value in (("--hidden", args.hidden), ("--epochs", args.epochs)):
        if value < 1:
            parser.error(f"{option} must be at least 1, got {value}")
    for option, value in (("--batch-size", args.batch_size), ("--seed", args.seed)):
        if value < 0:
            parser.error(f"{option} must not be negative, got {value}")
    if not 0 < args.lr < math.inf:
        parser.error(f"--lr must be positive and finite, got {args.lr}")
    check_out(parser, args.out)
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    import matplotlib.figure  # noqa: F401  (needed at the end; to be missed now)

    rng = np.random.default_rng(args.seed)
    X, y, X_test, y_test = load_digits(rng)
    params = init_params(rng, (X.shape[1], args.hidden, y.shape[1]))
    X, y, X_test, y_test = on_device(args.device, X, y, X_test, y_test)
    params = dict(zip(params, on_device(args.device, *params.values()), strict=True))

    losses, accuracies = [], []
    for epoch in range(1, args.epochs + 1):
        with np.errstate(over="ignore", invalid="ignore"):  # a loss that diverges is reported below
            losses.append(train(params, X, y, args.lr, 1, args.batch_size or None, rng))
            accuracies.append((accuracy(params, X, y), accuracy(params, X_test, y_test)))
        if not np.isfinite(losses[-1]).all():
            sys.exit(f"the loss was no longer finite in epoch {epoch}: --lr {args.lr} is too large")
        print(f"epoch {epoch:3d}  loss {np.mean(losses[-1]):.4f}", end="  ")
        print("train accuracy {:.4f}  test accuracy {:.4f}".format(*accuracies[-1]))

    plot(np.array(losses), np.array(accuracies), args.out)
    print(f"picture: {args.out}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except ImportError as error:
        extra = "cuda12" if error.name == "cupy" else "demos"
        sys.exit(f"this demo needs {error.name}, which is missing: pip install -e '.[{extra}]' in the clone brings it")
    except OSError as error:
        sys.exit(f"the picture could not be written: {error}")
    except RuntimeError as error:  # what CuPy raises where it finds no GPU
        sys.exit(f"mlp_numpy: {error}")
