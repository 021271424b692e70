"""Every property of every operation in the table, on every device. The oracle for gradients is the complex step."""

from __future__ import annotations

import ast
import inspect
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
from microgradnd import backends, ops
from microgradnd.autograd import Leaf, Part, backpropagate
from tests.op_gradients import (
    CASES,
    SMOOTH,
    assert_close,
    compare_with_complex_step,
    complex_step,
    drawn,
    evaluated,
    gradients,
    is_floating,
    reference_of,
    varied,
    weights,
)
from tests.op_table import OPS, Op, Sample


@pytest.mark.parametrize(("op", "sample"), CASES)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_value_and_dtype(op: Op, sample: Sample, dtype: Any, device: Any) -> None:
    args = drawn(op, sample, dtype)
    ours = evaluated(op, getattr(mg, op.name), [device.array(x) for x in args], sample.options)
    expected = evaluated(op, reference_of(op, device), args, sample.options)
    assert type(ours.data) is device.xp.ndarray
    assert not ours.requires_grad
    assert ours.dtype == (dtype if op.keeps_dtype else np.asarray(expected).dtype)
    assert_close(ours.numpy().astype(float), np.asarray(expected, float), 1e-14 if dtype == np.float64 else 2e-6)


@pytest.mark.parametrize(("op", "sample"), SMOOTH)
def test_gradient_equals_complex_step(op: Op, sample: Sample, device: Any) -> None:
    compare_with_complex_step(op, sample, device)


@pytest.mark.parametrize(("op", "sample"), SMOOTH)
def test_gradient_equals_central_differences(op: Op, sample: Sample) -> None:
    args = drawn(op, sample)
    positions = varied(op, args)

    def f(*values: Any) -> mg.Tensor:
        full = list(args)
        for i, value in zip(positions, values, strict=True):
            full[i] = value
        return evaluated(op, getattr(mg, op.name), full, sample.options)

    mg.check_grads(f, *[args[i] for i in positions], order=1)


@pytest.mark.parametrize(("op", "sample"), SMOOTH)
def test_second_order_equals_complex_step_of_first_order(op: Op, sample: Sample, device: Any) -> None:
    """The gradient of sum(w g^2), where g is the gradient, against the complex step of the engine's own first order."""
    args = drawn(op, sample)
    _, ours = gradients(op, sample, args, device, order=2)
    positions = varied(op, args)

    def scalar(*values: Any) -> Any:
        total = 0.0
        tensors = [mg.tensor(x) if isinstance(x, np.ndarray) else x for x in values]
        for i in positions:  # complex leaves are refused to users: here they carry the step
            tensors[i]._node = Leaf(tensors[i])
        out = evaluated(op, getattr(mg, op.name), tensors, sample.options)
        found = backpropagate(out._node, weights(out.shape).astype(out.dtype))
        for i in positions:
            g = found.get(tensors[i]._node)
            if g is not None:
                total = total + np.sum(g * g * weights(g.shape))
        return total

    for i, gradient in zip(positions, ours, strict=True):
        if op.analytic is None:
            assert_close(gradient, complex_step(scalar, args, i), 1e-12)
        else:  # NumPy's function is not analytic, or refuses complex numbers: differences of the first order
            assert_close(gradient, central_differences(scalar, args, i), 1e-8)


def central_differences(f: Callable[..., Any], args: list[Any], i: int, h: float = 1e-5) -> Any:
    numbers = np.empty(args[i].shape)
    for position in np.ndindex(args[i].shape):
        values = []
        for step in (h, -h):
            moved = [x.copy() if isinstance(x, np.ndarray) else x for x in args]
            moved[i][position] += step
            values.append(float(f(*moved)))
        numbers[position] = (values[0] - values[1]) / (2 * h)
    return numbers


@pytest.mark.parametrize(("op", "sample"), SMOOTH)
def test_gradients_keep_float32(op: Op, sample: Sample, device: Any) -> None:
    args = drawn(op, sample, np.float32)
    _, ours = gradients(op, sample, args, device)
    _, exact = gradients(op, sample, [x.astype(float) if is_floating(x) else x for x in args], device)
    for gradient, expected in zip(ours, exact, strict=True):
        assert gradient.dtype == np.float32
        assert_close(gradient, expected, 2e-5)


def strided(x: Any) -> Any:
    """The same values in memory that is neither contiguous nor writeable."""
    if not is_floating(x):
        return x
    spread = np.zeros([2 * n for n in x.shape], x.dtype)
    view = spread[(..., *(slice(None, None, -2) for _ in x.shape))]
    view[...] = x
    view = view.T.copy().T if x.ndim > 1 and x.shape[0] % 2 else view
    view.flags.writeable = False
    return view


@pytest.mark.parametrize(("op", "sample"), SMOOTH)
def test_strided_and_read_only_arguments(op: Op, sample: Sample) -> None:
    from tests.conftest import Device

    numpy = Device("numpy")
    args = drawn(op, sample)
    out, expected = gradients(op, sample, args, numpy)
    spread = [strided(x) for x in args]
    kept = [np.copy(x) for x in spread]
    again, ours = gradients(op, sample, spread, numpy)
    assert_close(again.numpy(), out.numpy(), 1e-14)
    for gradient, value in zip(ours, expected, strict=True):
        assert_close(gradient, value, 1e-13)
    for before, after in zip(kept, spread, strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize(("op", "sample"), SMOOTH)
def test_no_grad_records_nothing(op: Op, sample: Sample, device: Any) -> None:
    args = drawn(op, sample)
    tensors = [
        mg.tensor(device.array(x), requires_grad=i in varied(op, args)) if isinstance(x, np.ndarray) else x
        for i, x in enumerate(args)
    ]
    with mg.no_grad():
        constant = evaluated(op, getattr(mg, op.name), tensors, sample.options)
    recorded = evaluated(op, getattr(mg, op.name), tensors, sample.options)
    assert not constant.requires_grad
    assert recorded.requires_grad
    assert_close(constant.numpy(), recorded.numpy(), 1e-15)


def gradients_after(out: mg.Tensor, inputs: list[Any], change: bool) -> list[Any] | None:
    """Those of the weighted sum, after the result was changed in place or not; None where backward refuses."""
    if change:
        out.detach().data -= 0.3
    try:
        out.backward(weights(out.shape, out.dtype))
    except RuntimeError as error:
        if "changed in place" not in str(error):
            raise
        return None
    return [x.grad.data for x in inputs]


@pytest.mark.parametrize("op", [op for op in OPS if op.differentiable], ids=str)
def test_results_changed_in_place_are_refused_or_not_needed(op: Op) -> None:
    for sample in op.samples:
        args = drawn(op, sample)
        found = []
        for change in (False, True):
            tensors = [
                mg.tensor(x, requires_grad=i in varied(op, args)) if isinstance(x, np.ndarray) else x
                for i, x in enumerate(args)
            ]
            out = evaluated(op, getattr(mg, op.name), tensors, sample.options)
            if not out.data.flags.writeable:
                break
            inputs = [x for x in tensors if isinstance(x, mg.Tensor) and x.requires_grad]
            found.append(gradients_after(out, inputs, change))
        if len(found) == 2 and found[1] is not None:
            for before, after in zip(*found, strict=True):
                np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("op", [op for op in OPS if not op.differentiable], ids=str)
def test_constants_to_the_graph(op: Op) -> None:
    args = drawn(op, op.samples[0])
    tensors = [mg.tensor(x, requires_grad=x.dtype.kind == "f") if isinstance(x, np.ndarray) else x for x in args]
    assert not evaluated(op, getattr(mg, op.name), tensors, op.samples[0].options).requires_grad


@pytest.mark.parametrize("op", [op for op in OPS if op.differentiable], ids=str)
def test_a_wrong_gradient_is_caught(op: Op, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test of the test: the complex-step comparison fails when a vjp is one part in a million off."""
    from tests.conftest import Device

    record: Any = getattr(mg, op.name)
    inner = {"stack": "_concatenate", "astype": "_to_floating"}.get(op.name, f"_{op.name}")
    operation = (record if hasattr(record, "operation") else getattr(inspect.getmodule(record), inner)).operation
    vanishing = op.name in ("sign", "floor_divide")
    for index, vjp in enumerate(operation.vjps):
        if vjp is None:
            continue

        def wrong(g: Any, *saved: Any, vjp: Any = vjp) -> Any:
            right = vjp(g, *saved)
            right = right.whole() if isinstance(right, Part) else right
            return right * (1 + 1e-6) + (1e-6 if vanishing else 0.0)

        with monkeypatch.context() as patch:
            patch.setattr(operation, "vjps", (*operation.vjps[:index], wrong, *operation.vjps[index + 1 :]))
            caught = 0
            for sample in op.samples:
                try:
                    compare_with_complex_step(op, sample, Device("numpy"))
                except AssertionError:
                    caught += 1
            assert caught > 0, f"a wrong vjp for {operation.arguments[index]} went unnoticed"


def test_no_operation_is_missing_from_the_table() -> None:
    assert sorted(op.name for op in OPS) == sorted(ops.__all__)


def test_primitives_are_all_public_or_part_of_a_public_function() -> None:
    hidden = {"_concatenate", "_dropout", "_getitem", "_scaled_dot_product_attention", "_self_attention", "_to"}
    hidden |= {"_to_constant", "_to_floating", "_scatter_add", "_transpose", "take_rows"}
    for module in pathlib.Path(ops.__file__).parent.glob("*.py"):
        for node in ast.parse(module.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.decorator_list:
                assert node.name in ops.__all__ or node.name in hidden, f"{module.name}: {node.name}"


def test_namespaces_have_every_name_that_operations_use(device: Any) -> None:
    """``xp.name`` must exist in NumPy's and CuPy's namespace (the second order shows that ``ops`` has it)."""
    namespace = backends.NAMESPACES[type(mg.exp(device.array(np.ones(1))).data)]
    package = pathlib.Path(mg.__file__).parent
    used: set[str] = set()
    for module in [*package.glob("ops/*.py"), *package.glob("kernels/*.py")]:
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "xp":
                used.add(node.attr)
    assert len(used) > 30
    assert [name for name in sorted(used) if not hasattr(namespace, name)] == []
