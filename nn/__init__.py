"""nn: layers, losses, initialisers, optimisers, schedules, data helpers and checkpoints, built on microgradnd."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from microgradnd import scaled_dot_product_attention

from . import init
from .activations import GELU, LeakyReLU, ReLU, Sigmoid, SiLU, Softmax, Tanh
from .adaptive import Adam, AdamW, RMSprop
from .attention import KVCache, MultiHeadAttention
from .containers import MLP, Sequential
from .data import batches, one_hot, prefetch, standardize
from .dropout import Dropout
from .embedding import Embedding, LearnedPositions, RotaryPositions, SinusoidalPositions
from .gradients import clip_grad_norm, decay_groups
from .linear import Linear
from .losses import cross_entropy, mse_loss
from .module import Module
from .normalization import LayerNorm, RMSNorm
from .optim import Optimizer
from .scaling import GradScaler
from .schedules import LRScheduler, OneCycleLR, StepLR, WarmupCosineLR
from .sgd import SGD
from .transformer import Transformer
from .transformer_block import FeedForward, TransformerBlock

if TYPE_CHECKING:
    from .checkpoint import load_checkpoint, save_checkpoint
    from .pytorch import load_pytorch, save_pytorch

# Imported when they are first used: files are no part of most scripts, and take an eighth of the import.
_LATER = {
    "load_checkpoint": "checkpoint",
    "load_pytorch": "pytorch",
    "save_checkpoint": "checkpoint",
    "save_pytorch": "pytorch",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'nn' has no attribute {name!r}")
    return getattr(import_module(f".{_LATER[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})


__all__ = [
    "GELU",
    "MLP",
    "SGD",
    "Adam",
    "AdamW",
    "Dropout",
    "Embedding",
    "FeedForward",
    "GradScaler",
    "KVCache",
    "LRScheduler",
    "LayerNorm",
    "LeakyReLU",
    "LearnedPositions",
    "Linear",
    "Module",
    "MultiHeadAttention",
    "OneCycleLR",
    "Optimizer",
    "RMSNorm",
    "RMSprop",
    "ReLU",
    "RotaryPositions",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "SinusoidalPositions",
    "Softmax",
    "StepLR",
    "Tanh",
    "Transformer",
    "TransformerBlock",
    "WarmupCosineLR",
    "batches",
    "clip_grad_norm",
    "cross_entropy",
    "decay_groups",
    "init",
    "load_checkpoint",
    "load_pytorch",
    "mse_loss",
    "one_hot",
    "prefetch",
    "save_checkpoint",
    "save_pytorch",
    "scaled_dot_product_attention",
    "standardize",
]
