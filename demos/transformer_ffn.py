"""The feed-forward sublayer of a transformer block: by hand, by the engine, and trained.

Every block of a transformer holds, beside attention, a small network that is applied to each position by itself,
with a normalisation before it and a residual connection around it. For R positions of d features, with f features
inside (d = 16 and f = 64 here, often 512 and 2048),

    n = (x - mean) / sigma               (R, d)    each position normalised; sigma = sqrt(variance + eps)
    h = n * gamma + beta                 (R, d)
    z = h W1 + b1                        (R, f)
    a = relu(z) or gelu(z)               (R, f)
    y = x + a W2 + b2                    (R, d)

`backward` has the gradients of all of it as formulas. The demo prints how far the engine's gradients are from the
formulas (rounding: about 1e-15) and from central differences (about 1e-9), then trains the sublayer to imitate a
function of a single position and draws the losses. Run

    python demos/transformer_ffn.py
    python demos/transformer_ffn.py --device cuda          the same with CuPy arrays, on a GPU
"""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import microgradnd as mg
import nn

D_MODEL = 16  # d
D_FF = 64  # f
BATCH, POSITIONS = 4, 5  # R = 20 in the comparison
EPS = 1e-5
STEP = 1e-6  # of the central differences, in float64

STEPS = 1500
ROWS = 256  # positions in a training step
LR = 3e-3
SEED = 0
OUT = "transformer_ffn.png"

Arrays = dict[str, Any]  # NumPy's or CuPy's, by name
ACTIVATIONS = {"ReLU": nn.ReLU, "GELU": nn.GELU}


# The sublayer by hand. xp is NumPy or CuPy: nothing else differs between the two.


def activate(xp: Any, z: Any, activation: str) -> tuple[Any, Any]:
    """The activation and its slope at z."""
    if activation == "ReLU":
        return xp.maximum(z, 0), (z > 0).astype(z.dtype)
    phi = (1 + erf(xp, z / math.sqrt(2))) / 2  # the normal distribution function, and its derivative:
    density = xp.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    return z * phi, phi + z * density


def erf(xp: Any, x: Any) -> Any:
    """The error function, which NumPy lacks: Python's own, element by element; CuPy has one."""
    if xp is np:
        return np.vectorize(math.erf, otypes=[float])(x)
    from cupyx.scipy.special import erf

    return erf(x)


def forward(xp: Any, p: Arrays, x: Any, activation: str) -> Arrays:
    """Every intermediate result, by name."""
    deviation = x - x.mean(axis=1, keepdims=True)
    sigma = xp.sqrt((deviation * deviation).mean(axis=1, keepdims=True) + EPS)  # (R, 1)
    n = deviation / sigma
    h = n * p["gamma"] + p["beta"]
    z = h @ p["W1"] + p["b1"]
    a, slope = activate(xp, z, activation)
    y = x + a @ p["W2"] + p["b2"]
    return {"x": x, "sigma": sigma, "n": n, "h": h, "slope": slope, "a": a, "y": y}


def backward(p: Arrays, cache: Arrays, g: Any) -> Arrays:
    """Gradients for the input and the parameters, from the results of `forward` and the gradient g (R, d) of y."""
    n, h, a = cache["n"], cache["h"], cache["a"]
    # y = x + a W2 + b2: the residual connection passes g on as it is, and the second linear layer gets it too.
    db2 = g.sum(axis=0)  # (d,)
    dW2 = a.T @ g  # (f, d)
    da = g @ p["W2"].T  # (R, f)
    # a = relu(z) or gelu(z), element by element.
    dz = da * cache["slope"]  # (R, f)
    # z = h W1 + b1
    db1 = dz.sum(axis=0)  # (f,)
    dW1 = h.T @ dz  # (d, f)
    dh = dz @ p["W1"].T  # (R, d)
    # h = n * gamma + beta
    dgamma = (dh * n).sum(axis=0)  # (d,)
    dbeta = dh.sum(axis=0)  # (d,)
    dn = dh * p["gamma"]  # (R, d)
    # n has mean 0 and mean square 1 whatever x is: what in dn would change the one or the other is without effect.
    across = dn - dn.mean(axis=1, keepdims=True) - n * (dn * n).mean(axis=1, keepdims=True)
    dx = g + across / cache["sigma"]  # both ways from x to y
    return {"x": dx, "gamma": dgamma, "beta": dbeta, "W1": dW1, "b1": db1, "W2": dW2, "b2": db2}


def array_library(device: str) -> Any:
    """NumPy or CuPy, for what is computed by hand."""
    if device == "cpu":
        return np
    import cupy

    return cupy


def central_differences(f: Callable[[], Any], x: Any) -> Any:
    """(f(x + h) - f(x - h)) / 2h for each element of x, which f reads."""
    slopes = x * 0
    for position in np.ndindex(x.shape):
        value = x[position].copy()
        x[position] = value + STEP
        above = f()
        x[position] = value - STEP
        slopes[position] = (above - f()) / (2 * STEP)
        x[position] = value
    return slopes


# The sublayer on the engine.


class Sublayer(nn.Module):
    """x + FFN(LayerNorm(x))."""

    def __init__(self, d_model: int, d_ff: int, activation: type[nn.Module], dtype: Any, rng: Any) -> None:
        self.norm = nn.LayerNorm(d_model, eps=EPS, dtype=dtype)
        self.feed_forward = nn.FeedForward(d_model, d_ff, activation, dtype=dtype, rng=rng)

    def forward(self, x: mg.Tensor) -> mg.Tensor:
        return x + self.feed_forward(self.norm(x))


NAMES = {
    "norm.weight": "gamma",
    "norm.bias": "beta",
    "feed_forward.linear1.weight": "W1",
    "feed_forward.linear1.bias": "b1",
    "feed_forward.linear2.weight": "W2",
    "feed_forward.linear2.bias": "b2",
}


def compare(device: str, activation: str, d_model: int, d_ff: int, rng: np.random.Generator) -> None:
    """Print, per parameter, the largest difference between two gradients relative to the largest element."""
    model = Sublayer(d_model, d_ff, ACTIVATIONS[activation], np.float64, rng)
    for parameter in model.parameters():  # no zeros and ones, which would hide errors
        parameter.data = parameter.data + rng.uniform(-0.3, 0.3, parameter.shape)
    model.to(device)
    x = mg.tensor(rng.standard_normal((BATCH, POSITIONS, d_model)), requires_grad=True, device=device)
    xp = array_library(device)
    g = xp.asarray(rng.standard_normal((BATCH, POSITIONS, d_model)))
    model(x).backward(g)
    engine = {"x": x.grad.data} | {NAMES[name]: p.grad.data for name, p in model.named_parameters()}

    p = {NAMES[name]: parameter.data.copy() for name, parameter in model.named_parameters()}
    rows, g_rows = x.data.reshape(-1, d_model).copy(), g.reshape(-1, d_model)  # (R, d)
    formulas = backward(p, forward(xp, p, rows, activation), g_rows)

    def loss() -> Any:
        return (forward(xp, p, rows, activation)["y"] * g_rows).sum()

    print(f"\n{activation}: largest difference from the engine's gradient, relative to its largest element")
    print(f"{'':8}{'shape':>10}{'formulas':>14}{'central differences':>24}")
    for name, gradient in engine.items():
        array = rows if name == "x" else p[name]
        differences = central_differences(loss, array)
        shape = "x".join(map(str, array.shape))
        pair = [relative(xp, other, gradient.reshape(array.shape)) for other in (formulas[name], differences)]
        print(f"{name:8}{shape:>10}{pair[0]:14.1e}{pair[1]:24.1e}")


def relative(xp: Any, other: Any, ours: Any) -> float:
    return float(xp.abs(other - ours).max() / xp.abs(ours).max())


def teacher(xp: Any, mix: Any, x: Any) -> Any:
    """What the sublayer is to imitate: a function of each position by itself, (R, d) -> (R, d)."""
    n = (x - x.mean(axis=1, keepdims=True)) / x.std(axis=1, keepdims=True)
    return x + xp.sin(n @ mix)


def train(
    device: str, activation: str, d_model: int, d_ff: int, steps: int, lr: float, seed: int
) -> tuple[list[float], Any, Any]:
    """The loss at each step, and for new positions the targets and what the trained sublayer gives, (R, d) each."""
    rng = np.random.default_rng(seed)
    model = Sublayer(d_model, d_ff, ACTIVATIONS[activation], np.float32, rng).to(device)
    xp = array_library(device)
    mix = xp.asarray((rng.standard_normal((d_model, d_model)) / math.sqrt(d_model)).astype(np.float32))
    optimizer = nn.AdamW(nn.decay_groups(model, 1e-3), lr)
    schedule = nn.WarmupCosineLR(optimizer, min(50, steps - 1), steps)
    losses = []

    def positions(count: int) -> Any:
        return xp.asarray(rng.standard_normal((count, d_model)).astype(np.float32))

    for _ in range(steps):
        x = positions(ROWS)
        loss = nn.mse_loss(model(x), teacher(xp, mix, x))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss)  # asked for its value at the end: a GPU need not be waited for in every step
    values = [loss.item() for loss in losses]
    if not np.isfinite(values).all():
        raise ArithmeticError(f"the loss is no longer finite: --lr {lr} is too large")
    x = positions(ROWS)
    with mg.no_grad():
        out = model(x)
    return values, teacher(xp, mix, x) - x, out.data - x


def plot(results: dict[str, tuple[list[float], np.ndarray, np.ndarray]], out: Path) -> None:
    """Losses by step, and for new positions what was learned against what was to be learned."""
    # A Figure made without pyplot is drawn by Agg: no window and no display are needed.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, *rest = figure.subplots(1, 1 + len(results), width_ratios=(1.6, *[1] * len(results)))
    for activation, (losses, _, _) in results.items():
        left.plot(np.arange(1, len(losses) + 1), losses, linewidth=0.9, label=activation)
    targets = next(iter(results.values()))[1]
    left.axhline(float((targets**2).mean()), color="gray", linestyle="--", label="residual connection alone")
    left.set(yscale="log", xlabel="step", ylabel="mean squared error", title="training loss")
    left.legend()
    left.grid(alpha=0.3)
    for axis, (activation, (_, targets, learned)) in zip(rest, results.items(), strict=True):
        axis.plot(targets.ravel(), learned.ravel(), ".", markersize=1.5)
        axis.axline((0, 0), slope=1, color="gray", linewidth=0.8)
        axis.set(xlabel="target minus input", title=f"new positions, {activation}", aspect="equal")
    rest[0].set_ylabel("output minus input")
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
    parser = argparse.ArgumentParser(description="The feed-forward sublayer of a transformer block.")
    parser.add_argument("--d-model", type=int, default=D_MODEL, help="features of a position (%(default)s)")
    parser.add_argument("--d-ff", type=int, default=D_FF, help="features inside (%(default)s)")
    parser.add_argument("--steps", type=int, default=STEPS, help="training steps (%(default)s)")
    parser.add_argument("--lr", type=float, default=LR, help="learning rate (%(default)s)")
    parser.add_argument("--seed", type=int, default=SEED, help="seed of all randomness (%(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="NumPy or CuPy (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path(OUT), help="picture to write (%(default)s)")
    args = parser.parse_args(argv)
    for option, value, least in (("--d-model", args.d_model, 2), ("--d-ff", args.d_ff, 1), ("--steps", args.steps, 1)):
        if value < least:
            parser.error(f"{option} must be at least {least}, got {value}")
    if not 0 < args.lr < math.inf:
        parser.error(f"--lr must be positive and finite, got {args.lr}")
    if args.seed < 0:
        parser.error(f"--seed must not be negative, got {args.seed}")
    check_out(parser, args.out)
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    import matplotlib.figure  # noqa: F401  (needed at the end; to be missed now)
    from tqdm import tqdm

    mg.tensor(0.0, device=args.device)  # where there is no such device, the error comes now
    rng = np.random.default_rng(args.seed)
    for activation in ACTIVATIONS:
        compare(args.device, activation, args.d_model, args.d_ff, rng)

    results = {}
    print()
    # The bar is drawn on terminals only, so that a log file holds just the lines.
    for activation in (bar := tqdm(ACTIVATIONS, unit="run", disable=None)):
        with np.errstate(over="ignore", invalid="ignore"):  # reported as a loss that is not finite
            losses, targets, learned = train(
                args.device, activation, args.d_model, args.d_ff, args.steps, args.lr, args.seed
            )
        results[activation] = losses, *(x.get() if hasattr(x, "get") else x for x in (targets, learned))
        bar.write(f"{activation}: mean squared error {losses[0]:.4f} at first, {np.mean(losses[-20:]):.4f} at the end")
    plot(results, args.out)
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
    except (ArithmeticError, MemoryError, OSError, RuntimeError) as error:
        sys.exit(f"transformer_ffn: {error}")
