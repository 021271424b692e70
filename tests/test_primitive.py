"""@primitive and @fused: what a user's own operation gets, and what is refused when it is defined."""

from __future__ import annotations

import functools
import inspect
import re
import traceback
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
from microgradnd import ops
from microgradnd.fused import fused


@mg.primitive(x=lambda g, y: g * y, y=lambda g, x: g * x)
def times(xp: Any, x: Any, y: Any = 2.0) -> Any:
    """The product."""
    return x * y


def test_a_new_operation_in_one_place(device: Any) -> None:
    x = mg.tensor(device.array(np.array([1.0, 2.0])), requires_grad=True)
    times(x, y=x).sum().backward()
    np.testing.assert_array_equal(device.host(x.grad.data), [2, 4])
    mg.check_grads(times, device.array(np.ones(2)), device.array(np.full(2, 3.0)), order=3)


def test_it_is_a_proper_function() -> None:
    assert times.__name__ == "times"
    assert times.__doc__ == "The product."
    assert times.__module__ == __name__
    assert str(inspect.signature(times)) == "(x: 'Any', y: 'Any' = 2.0) -> 'Tensor'"
    assert times(3.0).item() == 6.0
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        times()


def test_errors_inside_show_the_operation_and_its_text() -> None:
    @mg.primitive(x=lambda g: g)
    def broken(xp: Any, x: Any) -> Any:
        raise KeyError("inside")

    with pytest.raises(KeyError) as caught:
        broken(1.0)
    assert "in the operation broken" in caught.value.__notes__[0]
    assert "out = _function(xp, x)" in "".join(traceback.format_exception(caught.value))


def test_parameters_named_like_builtins_and_defaults_of_vjps() -> None:
    @mg.primitive(tuple=lambda g, float, factor=2.0: g * float * factor, float=lambda g, tuple: 2.0 * g * tuple)
    def product(xp: Any, tuple: Any, float: Any = 3.0) -> Any:
        return 2.0 * tuple * float

    mg.check_grads(product, 1.5, np.ones(2))


def test_sequence_arguments() -> None:
    @mg.primitive(xs=lambda g, i, xs, power: g * power * xs[i] ** (power - 1))
    def power_sum(xp: Any, *xs: Any, power: int = 2) -> Any:
        total = 0.0
        for x in xs:
            total = total + x**power
        return total

    mg.check_grads(lambda x, y, z: power_sum(x, y, z, power=3), 1.0, 2.0, 3.0, order=3)
    x = mg.tensor(2.0, requires_grad=True)
    power_sum(1.0, x, x).backward()
    assert x.grad.item() == 8.0


def test_gradients_are_computed_in_the_order_of_the_keywords() -> None:
    computed: list[str] = []

    def noted(name: str, g: Any) -> Any:
        computed.append(name)
        return g

    @mg.primitive(
        y=lambda g: noted("y", g), xs=lambda g, i, xs_shape: noted(f"xs[{i}]", g), x=lambda g, y: noted("x", g)
    )
    def total(xp: Any, x: Any, *xs: Any, y: Any) -> Any:
        return sum(xs, x + y)

    x, y, z = (mg.tensor(1.0, requires_grad=True) for _ in range(3))
    for args, expected in (
        ((x, z, 2.0, z), ["y", "xs[0]", "xs[2]", "x"]),
        ((x, 2.0), ["y", "x"]),
        ((2.0, z), ["y", "xs[0]"]),
    ):
        for create_graph in (False, True):
            computed.clear()
            total(*args, y=y).backward(create_graph=create_graph)
            assert computed == expected
    assert [v.grad.item() for v in (x, y, z)] == [4, 6, 6]  # type: ignore[union-attr]


def test_arguments_without_a_gradient() -> None:
    @mg.primitive(x=lambda g, mask: g * mask, mask=None)
    def masked(xp: Any, x: Any, mask: Any) -> Any:
        return x * mask

    x = mg.tensor([1.0, 2.0], requires_grad=True)
    masked(x, np.array([0.0, 1.0])).sum().backward()
    np.testing.assert_array_equal(x.grad.data, [0, 1])
    with pytest.raises(TypeError, match="masked: no gradient is defined with respect to mask"):
        masked(x, x)
    with mg.no_grad():
        masked(x, x)


def test_a_gradient_of_the_wrong_shape() -> None:
    @mg.primitive(x=lambda g: np.ones(5))
    def wrong(xp: Any, x: Any) -> Any:
        return x * 1.0

    x = mg.tensor(np.ones(3), requires_grad=True)
    with pytest.raises(ValueError, match=r"wrong: the gradient with respect to x has shape \(5,\).*\(3,\)"):
        wrong(x).sum().backward()


def test_gradients_computed_with_operations() -> None:
    @mg.primitive(x=lambda g, x: g * cosh(x))
    def sinh(xp: Any, x: Any) -> Any:
        return xp.sinh(x)

    @mg.primitive(x=lambda g, x: g * sinh(x))
    def cosh(xp: Any, x: Any) -> Any:
        return xp.cosh(x)

    mg.check_grads(lambda x: sinh(2.0 * x) * x, np.array([0.3, -1.2]), order=3)
    x = mg.tensor([0.3], requires_grad=True)
    sinh(x).backward(np.array([2.0]))
    assert x.grad.data == 2 * np.cosh(0.3)  # type: ignore[union-attr]


@pytest.mark.parametrize("wrong", [None, 2.0, [1.0, 2.0]])
def test_a_gradient_that_is_no_array(wrong: Any) -> None:
    @mg.primitive(x=lambda g: wrong)
    def same(xp: Any, x: Any) -> Any:
        return x + 0

    message = f"same: the gradient with respect to x must be an array, got {wrong}"
    with pytest.raises(TypeError, match=re.escape(message)):
        same(2.0 * mg.tensor([1.0, 2.0], requires_grad=True)).sum().backward()


def test_an_operation_returns_one_array() -> None:
    @mg.primitive(x=lambda g, x: g)
    def both(xp: Any, x: Any) -> Any:
        return xp.linalg.slogdet(x)

    with pytest.raises(TypeError, match="both: it returned a SlogdetResult, expected one array"):
        both(np.eye(2))


def test_a_function_of_no_module() -> None:
    scope: dict[str, Any] = {}
    exec("def twice(xp, x):\n    return x * 2", scope)
    twice = mg.primitive(x=lambda g: g * 2)(scope["twice"])
    mg.check_grads(twice, 3.0)


def test_gradients_are_called_by_their_operation_in_captured_steps() -> None:
    w = mg.tensor([1.0, 2.0], requires_grad=True)

    @mg.capture
    def step(x: Any) -> Any:
        w.zero_grad()
        times(w, y=x).sum().backward()

    for _ in range(3):
        step(np.ones(2))
    assert "_giving_arrays" not in step.source


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: x @ 3.0, "matmul: y must be an array, got 3.0"),
        (lambda x: mg.linear(2, x), "linear: x must be an array, got 2"),
        (lambda x: mg.linear_relu(x, x, 1.5), "linear_relu: bias must be an array, got 1.5"),
        (lambda x: mg.layer_norm(3.0), "layer_norm: x must be an array, got 3.0"),
        (lambda x: mg.rms_norm(x, True), "rms_norm: weight must be an array, got True"),
        (lambda x: mg.swiglu(1.0, x), "swiglu: gate must be an array, got 1.0"),
    ],
)
def test_numbers_where_arrays_are_expected(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        call(mg.tensor(np.ones((3, 3))))


def test_a_decorator_without_gradients_is_refused() -> None:
    for call in (lambda: mg.primitive(lambda xp, x: x), lambda: mg.primitive()):
        with pytest.raises(TypeError, match="primitive: expected a gradient for each array argument"):
            call()


def test_definitions_that_do_not_fit_are_refused() -> None:
    def define(function: Any, **vjps: Any) -> None:
        mg.primitive(**vjps)(function)

    for function, vjps, match in (
        (lambda x: x, {"x": lambda g: g}, "first parameter must be xp"),
        (lambda xp, x: x, {}, "got none"),
        (lambda xp, x: x, {"z": lambda g: g}, "array arguments among x; got z"),
        (lambda xp, x: x, {"x": lambda g, z: g}, r"got \(g, z\)"),
        (lambda xp, x: x, {"x": lambda: 0}, r"got \(\)"),
        (lambda xp, *xs: xs, {"xs": lambda g: g}, r"takes g, i and then"),
        (lambda xp, out: out, {"out": lambda g: g}, "out can't be the name of a parameter"),
        (lambda xp, _x: _x, {"_x": lambda g: g}, "_x can't be the name"),
        (np.exp, {"x": lambda g: g}, "expected functions made by def or lambda"),
        (lambda xp, x: x, {"x": functools.partial(max, 0)}, "expected functions made by def or lambda"),
        (lambda xp, x: x, {"x": lambda g, *x: g}, r"primitive <lambda>: the vjp for x takes g"),
        (lambda xp, x: x, {"x": lambda g, *, x: g}, r"primitive <lambda>: the vjp for x takes g"),
    ):
        with pytest.raises(TypeError, match=match):
            define(function, **vjps)


def kernel(xp: Any, x: Any, y: Any) -> Any:
    calls.append("kernel")
    e = xp.exp(x * y)

    def pullback(g: Any) -> tuple[Any, ...]:
        calls.append("pullback")
        return g * e * y, g * e * x

    return e, pullback


calls: list[str] = []


@fused(kernel, "x", "y")
def exp_product(x: Any, y: Any) -> mg.Tensor:
    """exp(x y)."""
    calls.append("definition")
    return mg.exp(x * y)


def test_fused_operations_use_the_kernel_once_per_backward() -> None:
    calls.clear()
    x, y = (mg.tensor(v, requires_grad=True) for v in (0.5, 2.0))
    out = exp_product(x, y)
    out.backward(retain_graph=True)
    out.backward()
    assert calls == ["kernel", "pullback", "pullback"]
    assert x.grad.item() == pytest.approx(2 * 2.0 * np.e)
    assert y.grad.item() == pytest.approx(2 * 0.5 * np.e)
    assert exp_product.__doc__ == "exp(x y)."


def test_fused_operations_differentiate_their_definition() -> None:
    mg.check_grads(exp_product, 0.5, np.array([0.3, 2.0]), order=3)


def test_fused_operations_with_an_undifferentiated_argument() -> None:
    @fused(lambda xp, x, y: (x * y, lambda g: (g * y,)), "x")
    def product(x: Any, y: Any) -> mg.Tensor:
        return x * y

    mg.check_grads(product, 2.0, 3.0, order=2)


def test_fused_operations_compute_a_gradient_given_as_a_function_only_where_it_is_needed() -> None:
    computed: list[str] = []

    def scaled(xp: Any, x: Any, y: Any, z: Any) -> Any:
        def gradient(name: str, value: Any) -> Any:
            computed.append(name)
            return value

        out = x * y if z is None else x * y + z
        return out, lambda g: (lambda: gradient("x", g * y), lambda: gradient("y", g * x), g)

    @fused(scaled, "x", "y", "z")
    def product(x: Any, y: Any, z: Any = None) -> mg.Tensor:
        return x * y if z is None else x * y + z

    x, z = (mg.tensor(v, requires_grad=True) for v in (3.0, 1.0))
    product(x, 2.0).backward()
    product(x, 2.0, z=z).backward()
    assert computed == ["x", "x"]
    assert x.grad.item() == 4
    assert z.grad.item() == 1
    mg.check_grads(product, 2.0, 3.0, order=2)
    mg.check_grads(product, 2.0, 3.0, np.array([1.0, 2.0]), order=2)


def test_cross_entropy_is_its_definition() -> None:
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((2, 3, 5))
    for targets in (rng.integers(0, 5, (2, 3)), rng.dirichlet(np.ones(5), (2, 3))):
        x, y = (mg.tensor(logits, requires_grad=True) for _ in range(2))
        ours = mg.cross_entropy(x, targets)
        defined = ops.cross_entropy.operation.definition(y, targets)  # type: ignore[attr-defined]
        assert ours.item() == pytest.approx(defined.item(), rel=1e-14)
        ours.backward()
        defined.backward()
        np.testing.assert_allclose(x.grad.data, y.grad.data, rtol=0, atol=1e-15)
