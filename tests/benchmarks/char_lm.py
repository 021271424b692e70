"""demos/char_lm.py against the same model in PyTorch: same initial weights and batches; losses and wall times."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from .environment import TORCH_INSTALLED, blas_threads
from .timing import Worker, line, ratio

ROUNDS = 1  # a round is a whole training run of both, a few minutes
TURN = 25  # iterations that one of them does before the other has its turn
PAUSE = 0.16  # seconds between two turns, in which threads that ran out of work go to sleep
FIRST = 5  # losses that have to agree at the start, where nothing has drifted apart yet
TOLERANCE = 1e-4
BAR = "bar: at most 1.30 x"


def data() -> tuple[np.ndarray, np.ndarray, int]:
    """Training and validation characters by number, and how many different ones there are."""
    from demos import char_lm as demo

    text = demo.read_text(None)
    characters = demo.Characters(text)
    tokens = characters.encode(text)
    train, validation = np.split(tokens, [round((1 - demo.VALIDATION_SHARE) * len(tokens))])
    return train, validation, len(characters.characters)


def batches(rng: np.random.Generator, train: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    from demos import char_lm as demo

    while True:
        yield demo.random_batch(train, demo.SETTINGS["context"], demo.SETTINGS["batch_size"], rng)


Steps = dict[str, Callable[[], Any]]


def engine_run() -> Steps:
    """One iteration of the demo, and its validation loss."""
    import nn
    from demos import char_lm as demo

    train, validation, vocab_size = data()
    model, optimizer, schedule, rng = demo.make(demo.SETTINGS, vocab_size, np.random.default_rng(0)).values()
    source = batches(rng, train)

    def step() -> float:
        inputs, targets = next(source)
        loss = nn.cross_entropy(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        nn.clip_grad_norm(model.parameters(), demo.MAX_NORM)
        optimizer.step()
        schedule.step()
        return loss.item()  # type: ignore[no-any-return]

    return {"step": step, "validation": lambda: demo.evaluate(model, validation)}


def torch_run() -> Steps:
    """The same in PyTorch, with its fused attention, as nanoGPT writes it."""
    import torch
    from torch.nn import functional as F

    from demos import char_lm as demo

    torch.set_num_threads(blas_threads())
    train, validation, vocab_size = data()
    ours, optimizer, schedule, rng = demo.make(demo.SETTINGS, vocab_size, np.random.default_rng(0)).values()
    source = batches(rng, train)
    heads, context = demo.SETTINGS["heads"], demo.SETTINGS["context"]

    def linear(layer: Any) -> Any:
        made = torch.nn.Linear(layer.in_features, layer.out_features)
        made.weight.data.copy_(torch.from_numpy(layer.weight.data.T))
        made.bias.data.copy_(torch.from_numpy(layer.bias.data))
        return made

    class Block(torch.nn.Module):
        def __init__(self, block: Any) -> None:
            super().__init__()
            width = block.self_attn.out_proj.in_features
            self.norm1, self.norm2 = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
            self.qkv, self.out = linear(block.self_attn.in_proj), linear(block.self_attn.out_proj)
            self.linear1, self.linear2 = linear(block.feed_forward.linear1), linear(block.feed_forward.linear2)

        def forward(self, x: Any) -> Any:
            B, T, width = x.shape
            q, k, v = (y.view(B, T, heads, -1).transpose(1, 2) for y in self.qkv(self.norm1(x)).split(width, dim=2))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(y.transpose(1, 2).reshape(B, T, width))
            return x + self.linear2(F.gelu(self.linear1(self.norm2(x))))

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = torch.nn.Parameter(torch.from_numpy(ours.embedding.weight.data.copy()))
            self.positions = torch.nn.Parameter(torch.from_numpy(ours.positions.weight.data.copy()))
            self.blocks = torch.nn.ModuleList(map(Block, ours.blocks))
            self.norm = torch.nn.LayerNorm(self.tokens.shape[1])

        def forward(self, tokens: Any) -> Any:
            x = F.embedding(tokens, self.tokens) + self.positions[: tokens.shape[1]]
            for block in self.blocks:
                x = block(x)
            return self.norm(x) @ self.tokens.T

    model = Model()
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": demo.WEIGHT_DECAY},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, demo.SETTINGS["lr"], demo.BETAS)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: schedule.rate(demo.SETTINGS["lr"], step) / demo.SETTINGS["lr"]
    )

    def loss_of(inputs: np.ndarray, targets: np.ndarray) -> Any:
        logits = model(torch.from_numpy(np.ascontiguousarray(inputs)))
        return F.cross_entropy(logits.flatten(0, 1), torch.from_numpy(np.ascontiguousarray(targets)).flatten())

    def step() -> float:
        loss = loss_of(*next(source))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), demo.MAX_NORM)
        optimizer.step()
        scheduler.step()
        return float(loss.item())

    @torch.no_grad()
    def validation_loss() -> float:
        count = (len(validation) - 1) // context
        inputs = validation[: count * context].reshape(count, -1)
        targets = validation[1 : count * context + 1].reshape(count, -1)
        total = sum(
            loss_of(inputs[i : i + 64], targets[i : i + 64]).item() * len(inputs[i : i + 64])
            for i in range(0, count, 64)
        )
        return total / count

    return {"step": step, "validation": validation_loss}


def losses_and_seconds(step: Callable[[], float], count: int) -> tuple[list[float], float]:
    start = time.perf_counter()
    losses = [step() for _ in range(count)]
    return losses, time.perf_counter() - start


def run(rounds: int) -> None:
    from demos import char_lm as demo

    iterations = demo.SETTINGS["iterations"]
    makers: dict[str, Callable[[], Steps]] = {"microgradnd": engine_run}
    if TORCH_INSTALLED:
        makers["PyTorch"] = torch_run
    else:
        print("  PyTorch is not installed")
    for _ in range(rounds):
        workers = {who: Worker(make) for who, make in makers.items()}
        losses: dict[str, list[float]] = {who: [] for who in makers}
        turns: dict[str, list[float]] = {who: [] for who in makers}  # seconds per iteration
        for _ in range(iterations // TURN):
            for who, worker in workers.items():
                time.sleep(PAUSE)
                turn, seconds = worker(losses_and_seconds, "step", TURN)
                losses[who] += turn
                turns[who].append(seconds / TURN)
        validation = {who: worker(losses_and_seconds, "validation", 1)[0][0] for who, worker in workers.items()}
        for who, worker in workers.items():
            worker.close()
            if not np.abs(np.subtract(losses[who][:FIRST], losses["microgradnd"][:FIRST])).max() <= TOLERANCE:
                raise RuntimeError(f"char_lm: {who} computes other losses at the start: {losses[who][:FIRST]}")
            figure = f"{sum(turns[who]) * TURN:.1f} s in all, validation loss {validation[who]:.4f} nats"
            line(f"iteration, {who}", turns[who], "ms", figure)
        if "PyTorch" in turns:
            print(f"  time: {ratio(turns['microgradnd'], turns['PyTorch'], 'PyTorch')}  {BAR}")
            quotient = validation["microgradnd"] / validation["PyTorch"]
            print(f"  validation loss: {quotient:.5f} x PyTorch  bar: 0.99 to 1.01 x")
