"""mg.capture(step, graph=True): what is refused, and in which order things are asked for. No graph is made here: the
CPU stand-in has none, and a fake takes its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
import nn
from microgradnd.recording import graph


def host(*values: Any) -> list[bytes]:
    return [(x.data if isinstance(x, mg.Tensor) else x).get().tobytes() for x in values]


class FakeGraph:
    """Runs the program again, and leaves the results where they were at first."""

    def __init__(self, program: Callable[..., Any], inputs: list[Any]) -> None:
        self.program, self.inputs = program, inputs
        self.out = program(*inputs)
        self.launches = 0

    def launch(self) -> None:
        self.launches += 1
        found = self.program(*self.inputs)
        for out, x in zip(self.out, found, strict=True) if type(found) is tuple else [(self.out, found)]:
            out[...] = x


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[FakeGraph]:
    made: list[FakeGraph] = []

    def recorded(stream: Any, program: Any, inputs: list[Any]) -> tuple[Any, Any]:
        made.append(FakeGraph(program, inputs))
        return made[-1], made[-1].out

    monkeypatch.setattr(graph, "recorded", recorded)
    return made


def test_gradients_by_a_graph_are_those_of_the_step(cupy: Any, graphs: list[FakeGraph]) -> None:
    models = [nn.Transformer(7, 8, 2, 1, 6, rng=0).to("cuda") for _ in range(2)]
    optimizers = [nn.Adam(model.parameters(), 0.1) for model in models]

    def gradients(model: nn.Module, X: Any, y: Any) -> mg.Tensor:
        model.zero_grad()
        loss = nn.cross_entropy(model(X), y)
        loss.backward()
        return loss

    step = mg.capture(lambda X, y: gradients(models[1], X, y), graph=True)
    rng, held = np.random.default_rng(0), []
    for _ in range(8):
        X, y = (cupy.asarray(rng.integers(0, 7, (3, 6))) for _ in "Xy")
        loss = step(X, y)
        assert host(loss) == host(gradients(models[0], X, y))
        found = [[p.grad for p in model.parameters()] for model in models]
        assert host(*found[1]) == host(*found[0])
        held.append((loss, host(loss)))
        for optimizer in optimizers:  # outside: it has numbers that change
            optimizer.step()
    assert all(host(loss) == before for loss, before in held)
    assert len(step.recordings) == 1
    assert step.recordings[0].calls == sum(g.launches for g in graphs) >= 4


def test_a_replay_by_a_graph_copies_its_arguments_and_its_results_and_launches_nothing_else(
    cupy: Any, graphs: list[FakeGraph], counted: Any
) -> None:
    model = nn.MLP([6, 8, 3], rng=0).to("cuda")
    step = mg.capture(lambda x: model(x), graph=True)
    x = cupy.ones((5, 6), np.float32)
    for _ in range(4):
        assert host(step(x)) == host(model(x))
    graphs[-1].launch = lambda: None  # type: ignore[method-assign]
    with counted() as found:
        step(x)
    assert found.launches <= 2
    assert found.copies == found.synchronizations == found.library_calls == 0


def test_another_stream_and_other_parameters_get_a_graph_of_their_own(cupy: Any, graphs: list[FakeGraph]) -> None:
    model = nn.MLP([6, 8, 3], rng=0).to("cuda")
    step = mg.capture(lambda x: model(x), graph=True)
    x = cupy.ones((5, 6), np.float32)
    for i in range(9):
        if i == 6:
            for p in model.parameters():
                p.data = p.data * 2
        with cupy.cuda.Stream() if i == 4 else cupy.cuda.Stream.null:
            assert host(step(x)) == host(model(x))
    assert len(step.recordings) == 1
    assert len(graphs) == 5  # to be verified, afterwards, on the other stream, back again, for other parameters


def test_a_graph_is_made_on_a_stream_and_in_memory_of_its_own(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    class Stream:
        def __init__(self, non_blocking: bool) -> None:
            assert non_blocking

        def __enter__(self) -> None:
            done.append("enter")

        def __exit__(self, *exception: Any) -> None:
            done.append("exit")

        def begin_capture(self) -> None:
            done.append("begin")

        def end_capture(self) -> Any:
            done.append("end")
            return self

        def launch(self) -> None:
            done.append("launch")

    class Pool(cupy.cuda.MemoryPool):  # type: ignore[misc, name-defined]
        def malloc(self, size: int) -> Any:
            done.append("memory")
            return super().malloc(size)

    monkeypatch.setattr(cupy.cuda, "Stream", Stream)
    monkeypatch.setattr(cupy.cuda, "MemoryPool", Pool)
    step = mg.capture(lambda x: mg.tanh(mg.tensor(x)).sum(axis=0), graph=True)
    x = cupy.ones((3, 2))
    for _ in range(2):
        step(x)
    assert done == []
    with pytest.raises(mg.CaptureError, match="differ in the result"):  # this one computes nothing when it is launched
        step(x)
    assert [x for x in done if x != "memory"] == ["enter", "begin", "end", "exit", "launch"]
    assert done.index("begin") < done.index("memory") < done.index("end")


def test_a_stream_that_takes_no_graph_is_reported(cupy: Any) -> None:
    step = mg.capture(lambda x: x + 1, graph=True)
    for _ in range(2):
        step(cupy.ones(3))
    with pytest.raises(NotImplementedError, match="graph"):
        step(cupy.ones(3))


LAYER: dict[str, Any] = {}
REFUSED: dict[str, tuple[str, Callable[[Any, float], Any]]] = {
    "live": ("numbers that are read or drawn anew", lambda x, rate: mg.tensor(x) * rate),
    "drawn": ("numbers that are read or drawn anew", lambda x, rate: LAYER["dropout"](mg.tensor(x))),
    "branch": ("branches on values", lambda x, rate: mg.tensor(x) if mg.tensor(x).sum() > 0 else 0),
    "mask": ("branches on values", lambda x, rate: mg.tensor(x)[x > 0]),
    "host": ("arrays on the host", lambda x, rate: mg.tensor(x).to("cpu") + 1),
    "argument": ("an argument in place", lambda x, rate: x.fill(2)),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_a_graph_would_not_repeat_is_refused(cupy: Any, kind: str) -> None:
    reason, function = REFUSED[kind]
    LAYER["dropout"] = nn.Dropout(0.5, 0)
    step = mg.capture(lambda x, rate: function(x, rate), graph=True)
    # A float among the arguments is a number that changes; an integer is part of what a recording holds for.
    given = (cupy.ones(3), 0.5) if kind == "live" else (cupy.ones(3), 1)
    step(*given)
    with pytest.raises(mg.CaptureError, match=reason):
        step(*given)


def test_training_steps_and_accumulated_gradients_are_refused(cupy: Any) -> None:
    weight = mg.tensor(np.ones(3), requires_grad=True, device="cuda")
    optimizer = nn.SGD([weight], 0.1)

    def train(x: Any) -> None:
        optimizer.zero_grad()
        (weight * x).sum().backward()
        optimizer.step()

    def three_times(step: Callable[[Any], Any]) -> None:
        for _ in range(3):  # an optimiser's first step is not recorded
            step(cupy.ones(3))

    for function, reason in (
        (train, "a learning rate"),
        (lambda x: (weight * x).sum().backward(), "adds to gradients"),
    ):
        step = mg.capture(function, graph=True)
        with pytest.raises(mg.CaptureError, match=reason):
            three_times(step)


def test_steps_on_the_host_are_refused() -> None:
    step = mg.capture(lambda x: x + 1, graph=True)
    step(np.ones(3))
    with pytest.raises(mg.CaptureError, match="arrays on the host"):
        step(np.ones(3))
