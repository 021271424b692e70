"""Every property of every operation in the table, on every device. The oracle for gradients is the complex step."""

from __future__ import annotations

import ast
import ctypes
import functools
import inspect
import operator
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
from microgradnd import backends, ops
from microgradnd.autograd import Leaf, Part, backpropagate
from tests.op_table import OPS, Op, Sample

CASES = [pytest.param(op, sample, id=f"{op}-{i}") for op in OPS for i, sample in enumerate(op.samples)]
SMOOTH = [case for case in CASES if case.values[0].differentiable]


def drawn(op: Op, sample: Sample, dtype: Any = np.float64) -> list[Any]:
    """The sample's arguments: a tuple of integers is the shape of an array to draw."""
    rng = np.random.default_rng(len(op.name) + len(sample.args))
    args = []
    for x in sample.args:
        if isinstance(x, tuple):
            x = np.asarray(rng.uniform(op.low, op.high, x), dtype)
        elif is_floating(x):
            x = x.astype(dtype)
        args.append(x)
    return args


def reference_of(op: Op, device: Any) -> Any:
    return op.on_gpu if op.on_gpu is not None and device.name == "cuda" else op.reference


def is_floating(x: Any) -> bool:
    return isinstance(x, np.ndarray) and x.dtype.kind == "f"


def varied(op: Op, args: list[Any]) -> list[int]:
    """The positions of the arguments whose gradient is checked."""
    return [i for i in op.differentiable if i < len(args) and is_floating(args[i])]


def evaluated(op: Op, function: Callable[..., Any], args: list[Any], options: dict[str, Any]) -> Any:
    return function(args, **options) if op.sequence else function(*args, **options)


def weights(shape: tuple[int, ...], dtype: Any = np.float64) -> Any:
    return np.asarray(np.random.default_rng(99).uniform(0.5, 1.5, shape), dtype)


def gradients(op: Op, sample: Sample, args: list[Any], device: Any, order: int = 1) -> tuple[Any, list[Any]]:
    """The result and, for the weighted sum of its elements, the gradients for the varied arguments."""
    positions = varied(op, args)
    tensors: list[Any] = [
        mg.tensor(device.array(x), requires_grad=i in positions) if isinstance(x, np.ndarray) else x
        for i, x in enumerate(args)
    ]
    out = evaluated(op, getattr(mg, op.name), tensors, sample.options)
    loss = (out * device.array(weights(out.shape, out.dtype))).sum()
    loss.backward(create_graph=order == 2)
    found = [tensors[i].grad for i in positions]
    if order == 2:
        for i in positions:
            tensors[i].grad = mg.zeros_like(tensors[i])  # a gradient that does not vary leaves nothing
        total = functools.reduce(operator.add, [(g * g * device.array(weights(g.shape))).sum() for g in found])
        if total.requires_grad:
            total.backward()
        found = [tensors[i].grad for i in positions]
    return out, [device.host(g.data) for g in found]


def complex_step(f: Callable[..., Any], args: list[Any], i: int) -> Any:
    """The gradient of a scalar analytic function: Im f(x + ih) / h, exact to rounding (Squire and Trapp, 1998)."""
    h = 1e-30
    numbers = np.empty(args[i].shape)
    for position in np.ndindex(args[i].shape):
        moved = [x.astype(complex) if is_floating(x) else x for x in args]
        moved[i][position] += 1j * h
        numbers[position] = np.imag(f(*moved)) / h
    return numbers


def assert_close(ours: Any, expected: Any, tolerance: float) -> None:
    assert np.shape(ours) == np.shape(expected)
    scale = max(1.0, float(np.max(np.abs(expected), initial=0.0)))
    np.testing.assert_allclose(ours, expected, rtol=0, atol=tolerance * scale)


def compare_with_complex_step(op: Op, sample: Sample, device: Any) -> None:
    args = drawn(op, sample)
    _, ours = gradients(op, sample, args, device)
    reference = op.analytic or reference_of(op, device)

    def scalar(*values: Any) -> Any:
        out = evaluated(op, reference, list(values), sample.options)
        return np.sum(out * weights(np.shape(out)))

    for i, gradient in zip(varied(op, args), ours, strict=True):
        assert_close(gradient, complex_step(scalar, args, i), 1e-12)


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
            tensors[i]._node = Leaf(tensors[i].shape, tensors[i].dtype)
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


@pytest.mark.parametrize("name", ["max", "min"])
def test_extrema_of_nothing_are_refused(name: str, device: Any) -> None:
    with pytest.raises(ValueError, match=name):
        getattr(mg, name)(device.array(np.zeros((0, 3))))


def test_python_numbers_keep_float32(device: Any) -> None:
    x = mg.tensor(device.array(np.ones(3, np.float32)), requires_grad=True)
    for y in (x * 2.0, 2.0 * x, x + 1, 1 - x, x / 3, 3 / x, x**2, 2.0**x, mg.maximum(x, 0.5), mg.where(x > 0, x, 0.0)):
        assert y.dtype == np.float32
    assert (x * np.float64(2)).dtype == np.float64  # NumPy's scalars promote, as in NumPy 2


def test_ties_share_the_gradient() -> None:
    for function, expected in ((mg.maximum, 0.5), (mg.minimum, 0.5)):
        x, y = mg.tensor([1.0], requires_grad=True), mg.tensor([1.0], requires_grad=True)
        function(x, y).sum().backward()
        assert x.grad.item() == y.grad.item() == expected
    for function in (mg.max, mg.min):
        x = mg.tensor([[2.0, 2.0, 2.0, 2.0]], requires_grad=True)
        function(x).backward()
        np.testing.assert_array_equal(x.grad.data, np.full((1, 4), 0.25))


def test_errors_of_concatenate_show_what_was_given() -> None:
    with pytest.raises(
        ValueError, match=r"\(got axis: 1, arrays: \[numpy float64 \(2, 3\), numpy float64 \(3, 3\)\]\)"
    ):
        mg.concatenate([np.ones((2, 3)), np.ones((3, 3))], axis=1)


def test_edges_of_domains() -> None:
    x = mg.tensor([0.0, 0.0], requires_grad=True)
    mg.relu(x).sum().backward()
    np.testing.assert_array_equal(x.grad.data, [0, 0])
    x.zero_grad()
    mg.abs(x).sum().backward()
    np.testing.assert_array_equal(x.grad.data, [0, 0])
    for exponent, slope in ((0, 0.0), (1, 1.0), (2, 0.0), (np.array([0.0, 1.0]), [0, 1])):
        x.zero_grad()
        (x**exponent).sum().backward()
        np.testing.assert_array_equal(x.grad.data, np.broadcast_to(slope, 2))
    x = mg.tensor([-0.5, 0.7, 0.1], requires_grad=True)
    mg.clip(x, -0.5, 0.7).sum().backward()
    np.testing.assert_array_equal(x.grad.data, [1, 1, 1])


def test_extreme_values() -> None:
    big = mg.tensor([[1e4, -1e4, 0.0], [-np.inf, 0.0, 0.0]], requires_grad=True)
    for function in (mg.softmax, mg.log_softmax, mg.logsumexp):
        big.zero_grad()
        out = function(big, axis=-1)
        mg.where(out > -np.inf, out, 0.0).sum().backward()
        assert not np.isnan(out.numpy()).any()
        assert np.isfinite(big.grad.data).all()
    nothing = mg.tensor([-np.inf, -np.inf], requires_grad=True)
    with np.errstate(divide="ignore"):
        out = mg.logsumexp(nothing)
    out.backward()
    assert out.item() == -np.inf
    np.testing.assert_array_equal(nothing.grad.data, [0, 0])


def test_infinite_gradients_do_not_reach_what_was_not_chosen() -> None:
    for chosen in (mg.relu, lambda x: mg.maximum(x, 0.0), lambda x: mg.clip(x, 0.0, 1.0)):
        x = mg.tensor([-1.0, 4.0], requires_grad=True)
        with np.errstate(divide="ignore"):
            mg.sqrt(chosen(x)).sum().backward()
        assert x.grad.data[0] == 0.0


def test_logsumexp_of_infinity_and_nan() -> None:
    for values in ([np.inf, 1.0], [np.nan, 1.0]):
        x = mg.tensor(values, requires_grad=True)
        with np.errstate(invalid="ignore"):
            mg.logsumexp(x).backward()
        assert np.isnan(x.grad.data[0])


def test_float16_counts_beyond_its_range() -> None:
    x = mg.tensor(np.ones(70_000, np.float16), requires_grad=True)
    for function in (mg.mean, mg.max):
        x.zero_grad()
        function(x).backward()
        np.testing.assert_allclose(x.grad.data.astype(float), 1 / 70_000, rtol=0.01)


class OnStack(ctypes.Structure):
    _fields_ = (("words", ctypes.c_uint32 * 4096),)


@pytest.mark.parametrize("columns", range(1, 20))
def test_what_lies_on_the_stack_gives_no_warnings(columns: int) -> None:
    signalling = OnStack((ctypes.c_uint32 * 4096)(*[0x7FA00000] * 4096))  # NaN in float32 whose use sets a flag
    leave = ctypes.CDLL(None).abs  # an argument passed by value is copied onto the stack, and stays there
    leave.argtypes = [OnStack]
    for rows in range(1, 8):
        x = np.full((rows, columns), 0.5, np.float32)
        for a, axis in ((x, 1), (x.T, 0), (x, 0), (x.T, 1)):
            leave(signalling)
            assert (mg.sum(a, axis=axis).data == a.shape[axis] / 2).all()


def test_integer_bases_and_exponents() -> None:
    y = mg.tensor([3.0], requires_grad=True)
    (np.array([101], np.uint8) ** y).sum().backward()
    assert y.grad.item() == pytest.approx(101**3 * np.log(101), rel=1e-14)
    assert mg.grad(lambda y: mg.grad(lambda x: x**y)(2.0))(0.0).item() == pytest.approx(0.5)


def test_variance_without_degrees_of_freedom() -> None:
    x = mg.tensor([3.0], requires_grad=True)
    with pytest.warns(RuntimeWarning):
        x.var(ddof=1).backward()
    assert np.isnan(x.grad.item())


def test_einsum_refuses_what_numpy_does() -> None:
    for subscripts in ("...i,i->", "...,i->i", "i...,i...->i"):
        with pytest.raises(ValueError, match=r"einsum: .*the output has no \.\.\., for which an operand has axes"):
            mg.einsum(subscripts, np.ones((3, 3)), np.ones(3))
    assert mg.einsum("...i,i->", np.ones(3), np.ones(3)).item() == 3  # it stands for no axes


@pytest.mark.parametrize("dtype", ["?", "u1", "u4", "u8", "i1", "i2", "i8"])
def test_integers_in_exponents_do_not_wrap_around(dtype: str) -> None:
    for x in (np.array([0, 1]), np.array([100, 27]), np.array([0, 120])):
        given, exact = x.astype(dtype), x.astype(dtype).astype(np.float64)
        for function in (mg.softmax, mg.log_softmax, mg.logsumexp, lambda x: mg.cross_entropy(x, 1)):
            np.testing.assert_allclose(function(given).data, function(exact).data, rtol=1e-15)


def test_axes_and_indices_that_are_changed_before_backward() -> None:
    rng = np.random.default_rng(0)
    x = mg.tensor(rng.standard_normal((2, 2, 2)), requires_grad=True)
    axes = [1, 2, 0]
    y = mg.transpose(x, axes)
    axes.sort()
    g = rng.standard_normal((2, 2, 2))
    y.backward(g)
    np.testing.assert_array_equal(x.grad.data, g.transpose(2, 0, 1))
    for index in (np.array([0, 0, 1]), [0, 0, 1], mg.tensor([0, 0, 1])):
        x = mg.tensor(np.ones(3), requires_grad=True)
        y = mg.scatter_add(x, index, (3,))
        assert y.data.tolist() == [2, 1, 0]
        (index.data if isinstance(index, mg.Tensor) else index)[:] = [2, 2, 2]  # type: ignore[index]
        y.backward(np.array([1.0, 10.0, 100.0]))
        assert x.grad.data.tolist() == [1, 1, 10]


def test_axes_of_all_kinds() -> None:
    x = np.arange(6.0).reshape(2, 3)
    for function in (mg.sum, mg.mean, mg.max, mg.var, mg.std, mg.logsumexp):
        mg.check_grads(lambda x: function(x, axis=mg.tensor(1)), x)  # type: ignore[arg-type]  # noqa: B023
        for axis in (1.0, "1"):
            with pytest.raises(TypeError, match=function.__name__):
                function(x, axis=axis)  # type: ignore[arg-type]
    for axes in ([1, 0], np.array([1, 0]), mg.tensor([1, 0]), np.argsort([1, 0]), (np.int64(-1), 0)):
        mg.check_grads(lambda x: mg.transpose(x, axes), x)  # type: ignore[arg-type]  # noqa: B023
    mg.check_grads(lambda x: mg.transpose(x, np.array(0)), x[0])  # type: ignore[arg-type]
    for bad in (1.0, [0.0, 1.0], "ab", np.array(1)):
        with pytest.raises((TypeError, ValueError), match="transpose: "):
            mg.transpose(x, bad)  # type: ignore[arg-type]
    mg.check_grads(lambda x: mg.transpose(x, 0), x[0])
    mg.check_grads(lambda x: mg.transpose(x, -1), x[0])
    with pytest.raises(np.exceptions.AxisError, match="stack: axis 3 is out of bounds for a result of 3 axes"):
        mg.stack([x, x], axis=3)
    with pytest.raises(TypeError, match="stack: axis must be an integer, got None"):
        mg.stack([x, x], axis=None)  # type: ignore[arg-type]
    for shape in (2, np.int64(2), [2], (2,)):
        assert mg.scatter_add(np.ones(2), [0, 0], shape).data.tolist() == [2, 0]  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="getitem: a bound of a slice must be an integer"):
        mg.tensor(x)[0.5:]  # type: ignore[misc]
    with pytest.raises(ValueError, match=r"getitem: .*inhomogeneous"):
        mg.tensor(x)[[[0], [0, 1]]]


@pytest.mark.parametrize("dtype", ["U3", "S3", "O", "M8[s]", "V8", [("a", "f8")]])
def test_astype_refuses_what_is_not_numeric(dtype: Any) -> None:
    with pytest.raises(TypeError, match="astype: expected a numeric dtype, got"):
        mg.tensor([1.0]).astype(dtype)


def test_masked_indices_are_refused() -> None:
    index = np.ma.masked_array([0, 1], [True, False])
    for call in (lambda: mg.tensor([1.0, 2.0])[index], lambda: mg.scatter_add([1.0, 2.0], index, (2,))):
        with pytest.raises(TypeError, match="an index is a masked array"):
            call()


def test_settings_that_would_lose_a_gradient_are_refused() -> None:
    setting, x = mg.tensor(0.5, requires_grad=True), np.ones((2, 3))
    calls: dict[str, Callable[[], Any]] = {
        "leaky_relu: negative_slope": lambda: mg.leaky_relu(x, setting),
        "scaled_dot_product_attention: scale": lambda: mg.scaled_dot_product_attention(x, x, x, scale=setting),
        "self_attention: scale": lambda: mg.self_attention(x, num_heads=1, scale=setting),
        "dropout: p": lambda: mg.dropout(x, setting, 0),
    }
    for name, call in calls.items():
        with pytest.raises(TypeError, match=f"{name} must be a number, got tensor"):
            call()
        setting = setting.detach()
        call()
        setting = mg.tensor(0.5, requires_grad=True)
