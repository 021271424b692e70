"""A multilayer perceptron learns to read handwritten digits.

The data are the 1,797 scans that scikit-learn brings along: 8x8 pixels, ten digits. Four fifths train the
network, the rest test it. For a batch of n scans the network computes

    x        (n, 64)     pixels, standardised
    hidden   (n, 256)    relu(x W1 + b1)
    logits   (n, 10)     hidden W2 + b2; the largest one is the answer

and training lowers the cross-entropy between softmax(logits) and the true digits. There is no formula for
a gradient on this page: `loss.backward()` finds them all by going back through whatever was computed. Run

    python demos/mlp_digits.py
    python demos/mlp_digits.py --device cuda        the same with CuPy arrays, on a GPU

for about 98 % of the test digits, in a few seconds. The picture shows how the loss fell, which digits are
taken for which, and the scans that were misread.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import microgradnd as mg
import nn

HIDDEN = (256,)  # units of the hidden layers
EPOCHS = 60
LR = 0.2
BATCH_SIZE = 32
SEED = 0  # of the split, the initial weights and the order of the batches
OUT = "mlp_digits.png"

CLASSES = 10
TEST_SHARE = 0.2
CLIP = 3.0  # standard deviations
SMOOTHING = 0.1  # share of a target's probability that is spread over all classes
TRUE_TARGET = 1 - SMOOTHING + SMOOTHING / CLASSES  # what the true class is left with
REPORTS = 6  # lines of progress
SHOWN = 12  # misread digits in the picture


def load_digits(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """X_train, labels_train, X_test, labels_test: pixels 0 to 16 (n, 64) and digits 0 to 9 (n,), shuffled."""
    from sklearn import datasets

    X, labels = datasets.load_digits(return_X_y=True)  # (1797, 64), (1797,)
    order = rng.permutation(len(X))
    test, train = np.split(order, [round(TEST_SHARE * len(X))])
    return X[train], labels[train], X[test], labels[test]


def prepare(X_train: np.ndarray, X_test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every pixel with mean 0 and deviation 1 over the training set, which alone decides the scale.

    A pixel that is blank in nearly all scans has next to no deviation, so that a stray dot of ink there can
    end up 90 deviations away from the mean and shout down the other 63 pixels: hence the limit.
    """
    return tuple(X.clip(-CLIP, CLIP).astype(np.float32) for X in nn.standardize(X_train, X_test))


def smoothed(labels: np.ndarray) -> np.ndarray:
    """Targets (n, 10): one-hot rows that leave some doubt (label smoothing; Szegedy et al., 2016).

    A one-hot target is reached only by an infinite logit, and a network that chases it gets surer of itself
    than 1,438 scans can justify. These targets, 0.91 and nine times 0.01, are within reach.
    """
    return (1 - SMOOTHING) * nn.one_hot(labels, CLASSES) + SMOOTHING / CLASSES


def train_epoch(
    model: nn.Module, optimizer: nn.SGD, X: np.ndarray, targets: np.ndarray, batch_size: int, rng: np.random.Generator
) -> None:
    """One pass over the training set. ArithmeticError as soon as the loss is not finite."""
    for X_batch, targets_batch in nn.prefetch(nn.batches(X, targets, batch_size, rng=rng)):  # (n, 64), (n, 10)
        loss = nn.cross_entropy(model(X_batch), targets_batch)  # logits (n, 10) -> ()
        check_finite(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def check_finite(loss: float) -> None:
    if not math.isfinite(loss):
        raise ArithmeticError(f"the loss became {loss}")


def evaluate(model: nn.Module, X: np.ndarray, labels: np.ndarray) -> tuple[float, float, np.ndarray]:
    """Cross-entropy with the true labels, accuracy, and the predicted digits (n,)."""
    with mg.no_grad():
        logits = model(mg.tensor(X))  # (n, 10)
        loss = nn.cross_entropy(logits, mg.tensor(labels)).item()
    check_finite(loss)
    predictions = logits.numpy().argmax(axis=1)
    return loss, float(np.mean(predictions == labels)), predictions


def confusion(labels: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """counts[i, j] (10, 10): how often a digit i was read as j."""
    counts = np.zeros((CLASSES, CLASSES), int)
    np.add.at(counts, (labels, predictions), 1)
    return counts


def plot(losses: np.ndarray, images: np.ndarray, labels: np.ndarray, predictions: np.ndarray, out: Path) -> None:
    """losses (epochs, 2) on the training and test sets; the test set's images (n, 64), labels, predictions (n,)."""
    # A Figure made without pyplot is drawn by Agg: no window and no display are needed.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    misread = np.flatnonzero(labels != predictions)
    figure = Figure(figsize=(11, 7.2), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(3.3, 1))
    left, right = top.subplots(1, 2)

    epochs = np.arange(1, len(losses) + 1)
    left.plot(epochs, losses[:, 0], "o-", markersize=3, label="training set")
    left.plot(epochs, losses[:, 1], "s-", markersize=3, label="test set")
    left.axhline(-math.log(TRUE_TARGET), color="gray", linestyle="--", label="targets met exactly")
    left.set(xlabel="epoch", ylabel="cross-entropy", title="loss after each epoch", ylim=(0, None))
    left.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    left.legend()
    left.grid(alpha=0.3)

    counts = confusion(labels, predictions)
    shade = np.sqrt(counts)  # a single mistake must show beside forty right answers
    right.imshow(shade, cmap="Blues")
    for (i, j), count in np.ndenumerate(counts):
        if count:
            color = "white" if shade[i, j] > shade.max() / 2 else "black"
            right.text(j, i, count, ha="center", va="center", color=color)
    right.set(xlabel="predicted digit", ylabel="true digit", xticks=range(CLASSES), yticks=range(CLASSES))
    right.set_title(f"{len(labels) - len(misread)} of {len(labels)} test digits read correctly")

    row = bottom.subplots(1, SHOWN)
    for axis in row:
        axis.set_axis_off()
    shown = misread[:SHOWN]
    for axis, i in zip(row[(SHOWN - len(shown)) // 2 :], shown, strict=False):  # centred
        axis.set_axis_on()
        axis.imshow(images[i].reshape(8, 8), cmap="gray_r", vmin=0, vmax=16)
        axis.set(title=f"{labels[i]} -> {predictions[i]}", xticks=[], yticks=[])
    some = f"the first {SHOWN} of {len(misread)}" if len(misread) > SHOWN else f"all {len(misread)}"
    bottom.suptitle(f"misread digits, {some}: true -> predicted" if len(misread) else "no test digit was misread")
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
    parser = argparse.ArgumentParser(description="A multilayer perceptron learns to read handwritten digits.")
    parser.add_argument(
        "--hidden", type=int, nargs="+", default=HIDDEN, metavar="UNITS",
        help=f"sizes of the hidden layers ({' '.join(map(str, HIDDEN))})",
    )  # fmt: skip
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="passes over the training set (%(default)s)")
    parser.add_argument("--lr", type=float, default=LR, help="learning rate (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE, help="scans per step (%(default)s)")
    parser.add_argument("--seed", type=int, default=SEED, help="seed of all randomness (%(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="NumPy or CuPy (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path(OUT), help="picture to write (%(default)s)")
    args = parser.parse_args(argv)
    for option, value in (("--hidden", min(args.hidden)), ("--epochs", args.epochs), ("--batch-size", args.batch_size)):
        if value < 1:
            parser.error(f"{option} must be at least 1, got {value}")
    if not 0 < args.lr < math.inf:
        parser.error(f"--lr must be positive and finite, got {args.lr}")
    if args.seed < 0:
        parser.error(f"--seed must not be negative, got {args.seed}")
    check_out(parser, args.out)
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    with mg.device(args.device):  # where tensors and layers are made
        learn(args)


def learn(args: argparse.Namespace) -> None:
    import matplotlib.figure  # noqa: F401  (needed at the end; to be missed now)
    from tqdm import tqdm

    rng = np.random.default_rng(args.seed)
    images, labels, images_test, labels_test = load_digits(rng)
    X, X_test = prepare(images, images_test)  # (1438, 64), (359, 64)
    targets = smoothed(labels)  # (1438, 10)
    model = nn.MLP([X.shape[1], *args.hidden, CLASSES], rng=rng)
    optimizer = nn.SGD(model.parameters(), args.lr)

    losses = []
    # The bar is drawn on terminals only, so that a log file holds just the lines.
    with tqdm(range(1, args.epochs + 1), unit="epoch", disable=None) as epochs:
        for epoch in epochs:
            try:
                with np.errstate(over="ignore", invalid="ignore"):  # reported as a loss that is not finite
                    train_epoch(model, optimizer, X, targets, args.batch_size, rng)
                    loss, accuracy, _ = evaluate(model, X, labels)
                    test_loss, test_accuracy, predictions = evaluate(model, X_test, labels_test)
            except ArithmeticError as error:
                epochs.close()
                sys.exit(f"{error} in epoch {epoch}: --lr {args.lr} is too large")
            losses.append((loss, test_loss))
            if epoch % math.ceil(args.epochs / REPORTS) == 0 or epoch == args.epochs:
                epochs.write(
                    f"epoch {epoch:3d}  training loss {loss:.4f} accuracy {accuracy:.4f}  "
                    f"test loss {test_loss:.4f} accuracy {test_accuracy:.4f}"
                )

    right = np.count_nonzero(predictions == labels_test)
    print(f"test accuracy: {100 * test_accuracy:.1f} % ({right} of {len(labels_test)} digits)")
    plot(np.array(losses), images_test, labels_test, predictions, args.out)
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
    except RuntimeError as error:
        sys.exit(f"mlp_digits: {error}")
    except OSError as error:
        sys.exit(f"the picture could not be written: {error}")
