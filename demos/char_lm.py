"""A small transformer learns to write, character by character.

The model reads 64 characters and predicts, at each of them, the next one. For a batch of B excerpts it computes

    tokens   (B, 64)        characters by number
    x        (B, 64, 128)   embeddings of the characters and of their positions, added
    4 times                 x = x + attention(norm(x)): every position looks at those before it;
                            x = x + feed-forward(norm(x)): every position by itself
    logits   (B, 64, V)     norm(x) times the embeddings; softmax(logits) are the odds of the next character

and training lowers the cross-entropy between these odds and the characters that really follow (nanoGPT's setting
for a laptop: Karpathy, 2022). Run

    python demos/char_lm.py                     on the text of Python's own reference topics, 465,000 characters
    python demos/char_lm.py --device cuda       with CuPy arrays, on a GPU
    python demos/char_lm.py my.txt              on any text file in UTF-8
    python demos/char_lm.py --resume            goes on from the last checkpoint, as if there had been no break
    python demos/char_lm.py --resume --iterations 0 --prompt "The yield expression"          writes without training

It prints the loss in nats and bits per character, writes a sample, and draws the losses and what the attention
heads look at.
"""

import argparse
import hashlib
import itertools
import math
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import microgradnd as mg
import nn

SETTINGS = {
    "layers": 4,
    "heads": 4,
    "width": 128,
    "context": 64,  # characters that the model sees
    "positions": "learned",  # or "sinusoidal", or "rotary"
    "dropout": 0.0,
    "iterations": 2000,
    "batch_size": 12,
    "lr": 1e-3,
    "seed": 0,  # of the initial weights, the batches and the sample
}
WARMUP = 100  # iterations until the learning rate is reached; then it falls along half a cosine
LR_END = 1e-4
BETAS = (0.9, 0.99)
WEIGHT_DECAY = 0.1  # of matrices, not of biases and norms
MAX_NORM = 1.0  # of the gradient

VALIDATION_SHARE = 0.1  # the end of the text
EVALUATE_EVERY = 250
SAVE_EVERY = 100
PROMPT = "The "
LENGTH = 500
TEMPERATURE = 0.8
SHOWN = 24  # characters in the picture of what the heads look at
OUT = "char_lm.png"
CHECKPOINT = "char_lm.safetensors"


def read_text(path: Path | None) -> str:
    """The file's text; without a file, that of the topics which Python's help() knows."""
    if path is not None:
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is no text in UTF-8: {error}") from None
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


class Characters:
    """Numbers for the characters of a text, in the order of their code points."""

    def __init__(self, text: str) -> None:
        self.characters = sorted(set(text))
        self.numbers = {character: number for number, character in enumerate(self.characters)}

    def encode(self, text: str) -> np.ndarray:
        return np.array([self.numbers[character] for character in text], np.int64)

    def decode(self, tokens: np.ndarray) -> str:
        return "".join(self.characters[token] for token in tokens)


def random_batch(data: np.ndarray, context: int, size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Random excerpts (size, context), and the same one character further on."""
    starts = rng.integers(0, len(data) - context, size)
    rows = starts[:, None] + np.arange(context + 1)
    excerpts = data[rows]  # (size, context + 1)
    return excerpts[:, :-1], excerpts[:, 1:]


@mg.no_grad()
def evaluate(model: nn.Transformer, data: np.ndarray, rows: int = 64) -> float:
    """The mean loss over all of ``data``, cut into excerpts without overlap, in nats per character."""
    count = (len(data) - 1) // model.max_len
    inputs = data[: count * model.max_len].reshape(count, -1)
    targets = data[1 : count * model.max_len + 1].reshape(count, -1)
    model.eval()
    total = 0.0
    for start in range(0, count, rows):
        batch = slice(start, start + rows)
        total += nn.cross_entropy(model(inputs[batch]), mg.tensor(targets[batch])).item() * len(inputs[batch])
    model.train()
    return total / count


@mg.no_grad()
def attention_maps(model: nn.Transformer, tokens: np.ndarray) -> np.ndarray:
    """Where each head of each layer looks: (layers, heads, T, T) weights for T tokens."""
    model.eval()
    x = model.embedding(tokens)  # (T, width)
    x = model.positions(x) if model.positions is not None else x
    maps = []
    for block in model.blocks:
        _, weights = block.self_attn(block.norm1(x), is_causal=True, need_weights=True)  # (heads, T, T)
        maps.append(weights.numpy())
        x = block(x)
    return np.stack(maps)


def plot(history: dict[str, list], maps: np.ndarray, text: str, out: Path) -> None:
    """Losses by iteration, and attention (layers, heads, T, T) to the T characters of ``text``."""
    # A Figure made without pyplot is drawn by Agg: no window and no display are needed.
    from matplotlib.figure import Figure

    layers, heads = maps.shape[:2]
    maps_width = max(4.0, 1.9 * heads)
    figure = Figure(figsize=(6 + maps_width, max(4.5, 1.8 * layers + 0.6)), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(5.5, maps_width))
    axis = left.subplots()
    train = np.array(history["train"])
    axis.plot(np.arange(1, len(train) + 1), train, color="tab:blue", alpha=0.3, linewidth=0.8, label="each batch")
    width = max(1, len(train) // 40)
    means = train[: len(train) // width * width].reshape(-1, width).mean(axis=1)
    middles = width * (np.arange(len(means)) + 0.5) + 0.5
    axis.plot(middles, means, color="tab:blue", label=f"mean of {width} batches")
    axis.plot(history["iterations"], history["validation"], "o-", color="tab:orange", label="validation")
    axis.set(xlabel="iteration", ylabel="loss in nats per character", title="loss")
    bits = axis.secondary_yaxis("right", functions=(lambda x: x / math.log(2), lambda x: x * math.log(2)))
    bits.set_ylabel("bits per character")
    axis.legend()
    axis.grid(alpha=0.3)

    shown = [{" ": "␣", "\n": "⏎", "\t": "⇥"}.get(character, character) for character in text]
    cells = right.subplots(layers, heads, squeeze=False)
    for (layer, head), cell in np.ndenumerate(cells):
        seen = np.where(np.tri(len(shown), dtype=bool), maps[layer, head], np.nan)  # what comes later stays white
        image = cell.imshow(seen, cmap="magma_r", vmin=0, vmax=1)
        cell.set_xticks(range(len(shown)), shown, fontsize=5)
        cell.set_yticks(range(len(shown)), shown, fontsize=5)
        cell.tick_params(length=0, pad=1)
        for label in cell.get_yticklabels()[1::2]:
            label.set_x(-0.06)  # in two columns, so that each can be read
        cell.set_title(f"layer {layer + 1}, head {head + 1}", fontsize=7)
    right.colorbar(image, ax=cells, label="attention", shrink=0.5)
    right.suptitle("where each head looks:\nfrom the character on the left to those below", fontsize=9)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a character that the font lacks is drawn as a box
        figure.savefig(out, dpi=150)


def check_out(parser: argparse.ArgumentParser, out: Path, option: str, suffixes: Sequence[str]) -> None:
    """Refuse a file that could not be written, before any time is spent on training."""
    if out.suffix.lower() not in suffixes:
        parser.error(f"{option} must end in {' or '.join(suffixes)}, got {str(out)!r}")
    existed = out.exists()
    try:
        out.open("ab").close()  # appends nothing: a file that is already there stays as it is
    except OSError as error:
        parser.error(f"{option} {str(out)!r} cannot be written: {error.strerror}")
    if not existed:
        out.unlink()


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, dict]:
    """The options, and the settings of the run that were given: a resumed run has the others of its checkpoint."""
    parser = argparse.ArgumentParser(description="A small transformer learns to write, character by character.")
    parser.add_argument("text", type=Path, nargs="?", help="a text file in UTF-8 (the text of Python's topics)")
    for name, what in (
        ("iterations", "training steps in all; 0 only writes"),
        ("layers", "transformer blocks"),
        ("heads", "attention heads per block"),
        ("width", "of the vectors, a multiple of the heads"),
        ("context", "characters that the model sees"),
        ("positions", "learned, sinusoidal or rotary"),
        ("dropout", "share of elements that training drops"),
        ("batch_size", "excerpts per step"),
        ("lr", "learning rate"),
        ("seed", "of the weights, the batches and the sample"),
    ):
        kind = type(SETTINGS[name])
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help=f"{what} ({SETTINGS[name]})")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint, with its settings")
    parser.add_argument(
        "--checkpoint", type=Path, default=Path(CHECKPOINT), help="file to save to, or to resume (%(default)s)"
    )
    parser.add_argument("--save-every", type=int, default=SAVE_EVERY, help="steps between checkpoints (%(default)s)")
    parser.add_argument("--prompt", help=f"what the sample begins with ({PROMPT!r}, where the text has that)")
    parser.add_argument("--length", type=int, default=LENGTH, help="characters to write (%(default)s)")
    parser.add_argument("--temperature", type=float, default=TEMPERATURE, help="0: the likeliest ones (%(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="NumPy or CuPy (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path(OUT), help="picture to write (%(default)s)")
    args = parser.parse_args(argv)
    given = {name: value for name in SETTINGS if (value := getattr(args, name)) is not None}
    settings = SETTINGS | given
    for name in ("layers", "heads", "width", "context", "batch_size"):
        if settings[name] < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {settings[name]}")
    for name, value in (("iterations", settings["iterations"]), ("seed", settings["seed"]), ("length", args.length)):
        if value < 0:
            parser.error(f"--{name} must not be negative, got {value}")
    if args.save_every < 1:
        parser.error(f"--save-every must be at least 1, got {args.save_every}")
    if settings["positions"] not in ("learned", "sinusoidal", "rotary"):
        parser.error(f"--positions must be learned, sinusoidal or rotary, got {settings['positions']!r}")
    if settings["width"] % settings["heads"]:
        parser.error(f"--width must be a multiple of --heads, got {settings['width']} and {settings['heads']}")
    if settings["positions"] == "rotary" and settings["width"] // settings["heads"] % 2:
        parser.error(f"rotary positions need an even --width / --heads, got {settings['width'] // settings['heads']}")
    if settings["positions"] == "sinusoidal" and settings["width"] % 2:
        parser.error(f"sinusoidal positions need an even --width, got {settings['width']}")
    if not 0 < settings["lr"] < math.inf:
        parser.error(f"--lr must be positive and finite, got {settings['lr']}")
    if not 0 <= settings["dropout"] < 1:
        parser.error(f"--dropout must be at least 0 and below 1, got {settings['dropout']}")
    if not 0 <= args.temperature < math.inf:
        parser.error(f"--temperature must be at least 0 and finite, got {args.temperature}")
    if args.prompt == "":
        parser.error("--prompt must have at least one character")
    if settings["iterations"] == 0 and not args.resume:
        parser.error("--iterations 0 needs --resume: a model that was not trained has nothing to write")
    check_out(parser, args.out, "--out", (".png", ".pdf", ".svg"))
    if settings["iterations"]:
        check_out(parser, args.checkpoint, "--checkpoint", (".safetensors",))
    return args, given


def resumed(path: Path, given: dict) -> dict:
    """The values in a checkpoint, with the settings that were given. ValueError for those that can't change."""
    values = nn.load_checkpoint(path)
    if not {"settings", "step", "history", "text", "characters"} <= set(values):
        raise ValueError(f"{path} is a checkpoint, but not one of this demo")
    settings = values["settings"]
    free = {"iterations", "seed"} if given.get("iterations") == 0 else {"iterations"}  # the seed of a sample
    other = [name for name in given if name not in free and given[name] != settings[name]]
    if other:
        differences = (f"--{name.replace('_', '-')} {settings[name]}, not {given[name]}" for name in other)
        raise ValueError(f"{path} has {'; '.join(differences)}")
    values["settings"] = settings | given
    print(f"resumed: {path}, iteration {values['step']}")
    return values


def make(settings: dict, vocab_size: int, rng: np.random.Generator) -> dict:
    """What is trained and what trains it: all parts of a checkpoint that have a state."""
    model = nn.Transformer(
        vocab_size, settings["width"], settings["heads"], settings["layers"], settings["context"],
        positions=settings["positions"], dropout=settings["dropout"], rng=rng,
    )  # fmt: skip
    optimizer = nn.AdamW(nn.decay_groups(model, WEIGHT_DECAY), settings["lr"], BETAS)
    steps = max(1, settings["iterations"])
    schedule = nn.WarmupCosineLR(optimizer, min(WARMUP, steps - 1), steps, min(LR_END, settings["lr"]))
    return {"model": model, "optimizer": optimizer, "schedule": schedule, "rng": rng}


def train(
    parts: dict, values: dict, train_data: np.ndarray, validation_data: np.ndarray, args: argparse.Namespace
) -> None:
    """Go on from iteration ``values["step"]`` to the last one. ArithmeticError as soon as the loss is not finite."""
    from tqdm import tqdm

    model, optimizer, schedule, rng = parts.values()
    settings, history = values["settings"], values["history"]
    last = settings["iterations"]
    # The bar is drawn on terminals only, so that a log file holds just the lines.
    with (
        tqdm(total=last, initial=values["step"], unit="step", disable=None) as bar,
        np.errstate(over="ignore", invalid="ignore"),  # reported as a loss that is not finite
    ):
        while values["step"] < last:
            inputs, targets = random_batch(train_data, settings["context"], settings["batch_size"], rng)  # (B, T) each
            loss = nn.cross_entropy(model(inputs), mg.tensor(targets))
            if not math.isfinite(loss.item()):
                where = f"in iteration {values['step'] + 1}"
                raise ArithmeticError(f"the loss became {loss.item()} {where}: --lr {settings['lr']} is too large")
            optimizer.zero_grad()
            loss.backward()
            nn.clip_grad_norm(model.parameters(), MAX_NORM)
            optimizer.step()
            schedule.step()

            history["train"].append(loss.item())
            values["step"] += 1
            bar.update()
            if values["step"] % EVALUATE_EVERY == 0 or values["step"] == last:
                validation = evaluate(model, validation_data)
                history["iterations"].append(values["step"])
                history["validation"].append(validation)
                bar.write(
                    f"iteration {values['step']:5d}  training loss {np.mean(history['train'][-EVALUATE_EVERY:]):.4f}  "
                    f"validation loss {validation:.4f} nats = {validation / math.log(2):.4f} bits per character"
                )
            if values["step"] % args.save_every == 0 or values["step"] == last:
                nn.save_checkpoint(args.checkpoint, **parts, **values)


def main(argv: Sequence[str] | None = None) -> None:
    args, given = parse(argv)
    with mg.device(args.device):  # where tensors and layers are made
        learn(args, given)


def learn(args: argparse.Namespace, given: dict) -> None:
    import matplotlib.figure  # noqa: F401  (needed at the end; to be missed now)
    import safetensors  # noqa: F401

    values = {"settings": SETTINGS | given, "step": 0, "history": {"train": [], "iterations": [], "validation": []}}
    if args.resume and args.checkpoint.exists():
        values = resumed(args.checkpoint, given)
    elif args.resume and given.get("iterations") == 0:
        raise FileNotFoundError(f"there is no checkpoint {args.checkpoint} to write from")
    elif args.resume:
        print(f"there is no checkpoint {args.checkpoint} yet: starting anew")
    settings, start = values["settings"], values["step"]
    trains = start < settings["iterations"]
    if trains:
        text = read_text(args.text)
        if round(VALIDATION_SHARE * len(text)) <= settings["context"]:
            raise ValueError(
                f"the text has {len(text)} characters, of which a tenth is for validation: too few for --context "
                f"{settings['context']}"
            )
        digest = hashlib.sha256(text.encode()).hexdigest()
        if values.setdefault("text", digest) != digest:
            raise ValueError(
                f"{args.checkpoint} was trained on another text{'' if args.text else ': give its file again'}"
            )
        values.setdefault("characters", "".join(sorted(set(text))))
    elif settings["iterations"]:
        print(f"nothing to train: --iterations {settings['iterations']} are done")
    characters = Characters(values["characters"])
    prompt = args.prompt or (PROMPT if set(PROMPT) <= set(values["characters"]) else values["characters"][0])
    unknown = sorted(set(prompt) - set(values["characters"]))
    if unknown:
        raise ValueError(f"the text has no {', '.join(map(repr, unknown))}, which --prompt has")

    if not args.resume and args.checkpoint.exists():
        names = (f"{args.checkpoint.stem}_before{number or ''}" for number in itertools.count())
        kept = next(path for path in map(args.checkpoint.with_stem, names) if not path.exists())
        args.checkpoint.replace(kept)
        print(f"{args.checkpoint} is of another run (--resume goes on from it): kept as {kept}")
    parts = make(settings, len(characters.characters), np.random.default_rng(settings["seed"]))
    model = parts["model"]
    if start:
        nn.load_checkpoint(args.checkpoint, **parts)
    if trains:
        data = characters.encode(text)
        train_data, validation_data = np.split(data, [len(data) - round(VALIDATION_SHARE * len(data))])
        print(f"{len(train_data)} characters to train on, {len(validation_data)} to validate")
        print(f"{len(values['characters'])} different ones; {sum(p.size for p in model.parameters())} parameters")
        train(parts, values, train_data, validation_data, args)

    rng = np.random.default_rng(settings["seed"])  # of its own: training does not depend on what is written
    tokens = model.generate(characters.encode(prompt), args.length, temperature=args.temperature, rng=rng)
    print(f"\n{characters.decode(tokens)}\n")
    shown = tokens[: min(SHOWN, settings["context"])]
    plot(values["history"], attention_maps(model, shown), characters.decode(shown), args.out)
    print(f"checkpoint: {args.checkpoint}\npicture: {args.out}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("interrupted; --resume goes on from the last checkpoint, if there is one yet", file=sys.stderr)
        sys.exit(130)
    except ImportError as error:
        extra = "cuda12" if error.name == "cupy" else "demos"
        sys.exit(f"this demo needs {error.name}, which is missing: pip install -e '.[{extra}]' in the clone brings it")
    except (ArithmeticError, MemoryError, OSError, RuntimeError, ValueError) as error:
        sys.exit(f"char_lm: {error}")
