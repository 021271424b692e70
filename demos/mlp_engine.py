"""The multilayer perceptron of mlp_numpy.py, without its calculus.

One hidden layer of rectified linear units and a softmax over k classes, for n rows of d features:

    z1 = X W1 + b1              (n, h)
    a1 = max(z1, 0)             (n, h)
    z2 = a1 W2 + b2             (n, k)
    loss = mean over the rows of -log softmax(z2)[target]

Only these lines are left to write. mlp_numpy.py goes on with the chain rule, one formula per parameter,
each of which can be wrong. Here the tensors remember what they were computed from, and `loss.backward()`
leaves every parameter's gradient in its `.grad`. The same seed gives the same losses and weights in both
files, up to rounding. Run it, on the 8x8 digits of scikit-learn, with

    python demos/mlp_engine.py
    python demos/mlp_engine.py --device cuda        the same with CuPy arrays, on a GPU
"""

import argparse
import sys
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import DTypeLike

import microgradnd as mg

HIDDEN = 64  # units of the hidden layer
LR = 0.1
EPOCHS = 30
BATCH_SIZE = 32
TEST_SHARE = 0.2
SEED = 0

Params = dict[str, mg.Tensor]


def init_params(rng: np.random.Generator, sizes: Sequence[int], dtype: DTypeLike = np.float64) -> Params:
    """W1 (d, h), b1 (h,), W2 (h, k), b2 (k,) for sizes (d, h, k); weights of variance 1 / fan_in."""
    params = {}
    for i, (fan_in, fan_out) in enumerate(pairwise(sizes), start=1):
        W = rng.standard_normal((fan_in, fan_out)) / np.sqrt(fan_in)
        params[f"W{i}"] = mg.tensor(W, dtype, requires_grad=True)
        params[f"b{i}"] = mg.tensor(np.zeros(fan_out), dtype, requires_grad=True)
    return params


def forward(params: Params, X: mg.Tensor) -> mg.Tensor:
    """The logits z2: (n, d) -> (n, k)."""
    a1 = mg.relu(X @ params["W1"] + params["b1"])  # (n, h)
    return a1 @ params["W2"] + params["b2"]


def cross_entropy(z2: mg.Tensor, y: mg.Tensor) -> mg.Tensor:
    """Mean of -log p[target] over the rows, from the logits z2 (n, k) and one-hot rows y (n, k)."""
    return -(y.astype(z2.dtype) * mg.log_softmax(z2)).sum() / len(y)


def sgd_step(params: Params, lr: float) -> None:
    """params -= lr * gradients, in place, and forget the gradients: the next backward would add to them."""
    for p in params.values():
        p.data -= float(lr) * p.grad.data  # .data is the array: nothing is recorded
        p.grad = None


def train(
    params: Params,
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
    X = X.astype(params["W1"].dtype, copy=False)
    n = len(X)
    losses = []
    for _ in range(epochs):
        order = np.arange(n) if batch_size is None or rng is None else rng.permutation(n)
        for start in range(0, n, batch_size or n):
            rows = order[start : start + (batch_size or n)]
            loss = cross_entropy(forward(params, mg.tensor(X[rows])), mg.tensor(y[rows]))
            loss.backward()
            sgd_step(params, lr)
            losses.append(loss.item())
    return losses


def accuracy(params: Params, X: np.ndarray, y: np.ndarray) -> float:
    with mg.no_grad():
        z2 = forward(params, mg.tensor(X))
    return float(np.mean(z2.numpy().argmax(axis=1) == y.argmax(axis=1)))


def load_digits(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """X_train, y_train, X_test, y_test, standardised by the mean and deviation of the training set alone."""
    from sklearn import datasets

    X, labels = datasets.load_digits(return_X_y=True)  # (1797, 64), (1797,)
    y = (labels[:, None] == np.arange(10)).astype(float)  # (1797, 10)
    order = rng.permutation(len(X))
    test, train_rows = np.split(order, [round(TEST_SHARE * len(X))])
    mean, std = X[train_rows].mean(axis=0), X[train_rows].std(axis=0)
    std[std == 0] = 1  # a pixel that is blank in every training scan stays 0
    X = (X - mean) / std
    return X[train_rows], y[train_rows], X[test], y[test]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="The multilayer perceptron of mlp_numpy.py, without its calculus.")
    parser.add_argument("--seed", type=int, default=SEED, help="seed of all randomness (%(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="NumPy or CuPy (%(default)s)")
    args = parser.parse_args(argv)
    if args.seed < 0:
        parser.error(f"--seed must not be negative, got {args.seed}")
    rng = np.random.default_rng(args.seed)
    with mg.device(args.device):  # where mg.tensor puts what it gets
        X, y, X_test, y_test = load_digits(rng)  # (1438, 64), (1438, 10), (359, 64), (359, 10)
        params = init_params(rng, (X.shape[1], HIDDEN, y.shape[1]))
        for epoch in range(1, EPOCHS + 1):
            losses = train(params, X, y, LR, 1, BATCH_SIZE, rng)
            print(f"epoch {epoch:3d}  loss {np.mean(losses):.4f}", end="  ")
            print(f"train accuracy {accuracy(params, X, y):.4f}  test accuracy {accuracy(params, X_test, y_test):.4f}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except ImportError as error:
        extra = "cuda12" if error.name == "cupy" else "demos"
        sys.exit(f"this demo needs {error.name}, which is missing: pip install -e '.[{extra}]' in the clone brings it")
    except RuntimeError as error:
        sys.exit(f"mlp_engine: {error}")
