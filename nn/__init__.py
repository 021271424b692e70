"""nn: layers, losses, initialisers, optimisers and data helpers, built on microgradnd."""

from . import init
from .activations import ReLU, Softmax
from .containers import MLP, Sequential
from .data import batches, one_hot, standardize
from .dropout import Dropout
from .linear import Linear
from .losses import cross_entropy, mse_loss
from .module import Module
from .optim import SGD

__all__ = [
    "MLP",
    "SGD",
    "Dropout",
    "Linear",
    "Module",
    "ReLU",
    "Sequential",
    "Softmax",
    "batches",
    "cross_entropy",
    "init",
    "mse_loss",
    "one_hot",
    "standardize",
]
