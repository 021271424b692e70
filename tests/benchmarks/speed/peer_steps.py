"""The workloads in other engines on NumPy: MyGrad and HIPS autograd."""

from __future__ import annotations

import itertools
from typing import Any

from .numpy_steps import UPDATES
from .peer_transformer import transformer
from .workloads import SIZES, Steps, initial_parameters, labelled_batches

PEERS = {"MyGrad": "mygrad", "HIPS autograd": "autograd"}  # and what to import


def peer(library: str, workload: str) -> Steps:
    if workload not in SIZES:
        return transformer(library, workload)
    return {"MyGrad": mygrad, "HIPS autograd": hips_autograd}[library](workload)


def mygrad(workload: str) -> Steps:
    import mygrad as my
    from mygrad.nnet.activations import relu
    from mygrad.nnet.losses import softmax_crossentropy

    parameters = [my.tensor(p) for p in initial_parameters(workload)]
    update = UPDATES[workload]([p.data for p in parameters])
    batches = itertools.cycle(labelled_batches(workload))

    def step() -> Any:
        X, y = next(batches)
        *hidden, (W, b) = zip(parameters[::2], parameters[1::2], strict=True)
        for W_hidden, b_hidden in hidden:
            X = relu(my.matmul(X, W_hidden) + b_hidden)
        loss = softmax_crossentropy(my.matmul(X, W) + b, y)
        loss.backward()
        gradients = [p.grad for p in parameters]
        update(gradients)
        return loss.item()

    return {workload: step}


def hips_autograd(workload: str) -> Steps:
    import autograd.numpy as anp
    from autograd import value_and_grad

    parameters = initial_parameters(workload)
    update = UPDATES[workload](parameters)
    batches = itertools.cycle(labelled_batches(workload))

    def loss_of(parameters: Any, X: Any, y: Any) -> Any:
        *hidden, (W, b) = zip(parameters[::2], parameters[1::2], strict=True)
        for W_hidden, b_hidden in hidden:
            X = anp.maximum(anp.dot(X, W_hidden) + b_hidden, 0)
        z = anp.dot(X, W) + b
        z = z - anp.max(z, axis=1, keepdims=True)
        log_p = z - anp.log(anp.sum(anp.exp(z), axis=1, keepdims=True))
        return -anp.mean(log_p[anp.arange(len(y)), y])

    gradient_of = value_and_grad(loss_of)

    def step() -> Any:
        loss, gradients = gradient_of(parameters, *next(batches))
        update(gradients)
        return loss

    return {workload: step}
