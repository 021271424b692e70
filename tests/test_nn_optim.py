import math
import pickle

import numpy as np
import pytest

import microgradnd as mg
import nn

SETTINGS = [
    {"lr": 0.1},
    {"lr": 0.1, "momentum": 0.9},
    {"lr": 0.1, "weight_decay": 0.5},
    {"lr": 0.05, "momentum": 0.3, "weight_decay": 0.2},
    {"lr": 0.0, "momentum": 0.5},
]


def parameter(values, dtype=np.float64):
    return mg.tensor(values, dtype, requires_grad=True)


def descend(optimizer, p, coefficients):
    """One step on sum(coefficients * p^2); the gradient is returned."""
    optimizer.zero_grad()
    (coefficients * p * p).sum().backward()
    gradient = p.grad.data.copy()
    optimizer.step()
    return gradient


@pytest.mark.parametrize("options", SETTINGS)
def test_steps_by_hand(options):
    rng = np.random.default_rng(0)
    p = parameter(rng.standard_normal((3, 2)))
    coefficients = rng.standard_normal((3, 2))
    optimizer = nn.SGD([p], **options)
    values, velocity = p.data.copy(), None
    start = values.copy()
    for _ in range(6):
        gradient = descend(optimizer, p, coefficients)
        np.testing.assert_allclose(gradient, 2 * coefficients * values, rtol=1e-13)
        d = gradient + options.get("weight_decay", 0) * values
        velocity = d if velocity is None else options.get("momentum", 0) * velocity + d
        values = values - options["lr"] * velocity
        np.testing.assert_allclose(p.data, values, rtol=1e-13)
    assert (options["lr"] == 0) == np.array_equal(p.data, start)


def test_learning_rate_can_be_changed_between_steps():
    p = parameter([1.0, 2.0])
    optimizer = nn.SGD([p], 0.25)
    descend(optimizer, p, 1.0)
    np.testing.assert_array_equal(p.data, [0.5, 1.0])
    optimizer.param_groups[0]["lr"] = 0.5
    descend(optimizer, p, 1.0)
    np.testing.assert_array_equal(p.data, [0.0, 0.0])


def test_the_array_a_parameter_was_made_of_stays_as_it_was():
    array = np.array([1.0, 2.0])
    p = parameter(array)
    assert p.data is array
    optimizer = nn.SGD([p], 0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        descend(optimizer, p, 1.0)
    np.testing.assert_array_equal(array, [1, 2])
    assert (p.data < array).all()


def test_two_parameters_of_one_array_stay_independent():
    array = np.array([1.0, 2.0])
    p, q = parameter(array), parameter(array)
    optimizer = nn.SGD([p, q], 0.25)
    for _ in range(2):
        optimizer.zero_grad()
        ((p * p).sum() - (q * q).sum()).backward()
        optimizer.step()
    np.testing.assert_array_equal(p.data, [0.25, 0.5])
    np.testing.assert_array_equal(q.data, [2.25, 4.5])


def test_assigning_data_between_steps_is_respected_and_not_modified():
    p = parameter([1.0, 2.0])
    optimizer = nn.SGD([p], 0.25)
    descend(optimizer, p, 1.0)
    assigned = np.array([8.0, 16.0])
    p.data = assigned
    descend(optimizer, p, 1.0)
    np.testing.assert_array_equal(p.data, [4, 8])
    np.testing.assert_array_equal(assigned, [8, 16])


def test_updates_are_in_place_after_the_first():
    p = parameter([1.0, 2.0])
    optimizer = nn.SGD([p], 0.1)
    descend(optimizer, p, 1.0)
    memory = p.data
    descend(optimizer, p, 1.0)
    assert p.data is memory


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_gradients_are_not_modified(weight_decay):
    p = parameter([1.0, 2.0])
    optimizer = nn.SGD([p], 0.1, momentum=0.9, weight_decay=weight_decay)
    kept = []
    for _ in range(3):
        optimizer.zero_grad()
        (p * p).sum().backward()
        kept.append((p.grad.data, p.grad.data.copy()))
        optimizer.step()
    for gradient, copy in kept:
        np.testing.assert_array_equal(gradient, copy)


def test_parameters_without_a_gradient_are_skipped():
    p, q = parameter([1.0]), parameter([1.0])
    optimizer = nn.SGD([p, q], 0.1, momentum=0.9, weight_decay=0.5)
    for _ in range(2):
        descend(optimizer, p, 1.0)
    assert q.data[0] == 1  # no weight decay either
    assert q.grad is None
    descend(optimizer, q, 1.0)  # its velocity starts now
    assert q.data[0] == pytest.approx(1 - 0.1 * (2 + 0.5))


def test_zero_grad_forgets_all_gradients():
    p, q = parameter([1.0]), parameter([2.0])
    (p * q).sum().backward()
    nn.SGD([p, q], 0.1).zero_grad()
    assert p.grad is None
    assert q.grad is None


@pytest.mark.parametrize("number", [float, np.float64, np.float32])
def test_float32_stays_float32(number):
    p = parameter([1.0, 2.0], np.float32)
    optimizer = nn.SGD([p], number(0.125), momentum=number(0.5), weight_decay=number(0.25))
    for _ in range(2):
        descend(optimizer, p, np.float32(1))
    assert p.dtype == np.float32
    double = parameter([1.0, 2.0])
    reference = nn.SGD([double], 0.125, 0.5, 0.25)
    for _ in range(2):
        descend(reference, double, 1.0)
    np.testing.assert_array_equal(p.data, double.data)  # all numbers are short binary fractions


def test_gradients_that_were_recorded_are_used_by_value():
    p = parameter([1.0, 2.0])
    (p * p * p).sum().backward(create_graph=True)
    nn.SGD([p], 0.25, momentum=0.5).step()
    np.testing.assert_array_equal(p.data, [0.25, -1.0])
    assert p.requires_grad


def test_a_backward_after_the_step_is_refused():
    p = parameter([1.0, 2.0])
    optimizer = nn.SGD([p], 0.1)
    descend(optimizer, p, 1.0)
    loss = (p * p).sum()
    loss.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match="changed in place"):
        loss.backward()


def test_a_generator_of_parameters_is_read_once():
    model = nn.Linear(2, 1)
    optimizer = nn.SGD((p for p in model.parameters()), 0.1)
    assert all(a is b for a, b in zip(optimizer.param_groups[0]["params"], model.parameters(), strict=True))


def test_groups_have_settings_of_their_own():
    p, q = parameter([1.0]), parameter([1.0])
    optimizer = nn.SGD([{"params": [p]}, {"params": [q], "lr": 0.5, "weight_decay": 1.0}], lr=0.25)
    for tensor in (p, q):
        tensor.grad = np.ones(1)
    optimizer.step()
    assert (p.data[0], q.data[0]) == (0.75, 0.0)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.5]
    r = parameter([1.0])
    optimizer.add_param_group({"params": r, "lr": 1.0})
    r.grad = np.ones(1)
    optimizer.step()
    assert r.data[0] == 0
    for bad, error in (
        ({"params": [p]}, ValueError),
        ({"params": [parameter([1.0])], "learning_rate": 1.0}, TypeError),
        ({"lr": 1.0}, TypeError),
        ({"params": [parameter([1.0])], "lr": -1.0}, ValueError),
    ):
        with pytest.raises(error, match="SGD"):
            optimizer.add_param_group(bad)
    assert len(optimizer.param_groups) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -0.1}, "SGD: lr must be at least 0 and below inf, got -0.1"),
        ({"lr": math.nan}, "SGD: lr must be at least 0 and below inf, got nan"),
        ({"lr": math.inf}, "SGD: lr must be at least 0 and below inf, got inf"),
        ({"lr": 0.1, "momentum": 1.0}, "SGD: momentum must be at least 0 and below 1, got 1.0"),
        ({"lr": 0.1, "momentum": -0.5}, "SGD: momentum must be at least 0 and below 1, got -0.5"),
        ({"lr": 0.1, "weight_decay": -1}, "SGD: weight_decay must be at least 0 and below inf, got -1"),
        ({"lr": 0.1, "weight_decay": math.nan}, "SGD: weight_decay must be at least 0 and below inf, got nan"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        nn.SGD([parameter([1.0])], **options)


def test_a_group_gets_all_of_its_saved_settings_in_the_dict_that_it_is():
    p = parameter([1.0])
    optimizer = nn.SGD([p], 0.1)
    (group,) = groups = optimizer.param_groups
    group["note"] = "warm"
    saved = optimizer.state_dict()
    group.update(note="cold", lr=0.5)
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups is groups
    assert optimizer.param_groups[0] is group
    assert (group["note"], group["lr"], group["params"]) == ("warm", 0.1, (p,))


@pytest.mark.parametrize("make", [nn.SGD, nn.RMSprop])
def test_a_number_is_no_momentum(make):
    optimizer = make([parameter([1.0, 2.0])], lr=0.1, momentum=0.9)
    optimizer.param_groups[0]["params"][0].grad = np.ones(2)
    optimizer.step()
    saved = optimizer.state_dict()
    with pytest.raises(ValueError, match="load_state_dict: momentum_buffer must be an array, got 3"):
        optimizer.load_state_dict({**saved, "state": [{**saved["state"][0], "momentum_buffer": 3}]})


def test_what_is_no_state_is_refused_and_changes_nothing():
    p = parameter([1.0, 2.0])
    optimizer = nn.Adam([p], 0.1)
    p.grad = np.ones(2)
    optimizer.step()
    saved = optimizer.state_dict()
    for change, message in (
        ({"step": "x"}, "step must be an integer of at least 0, got 'x'"),
        ({"step": None}, "step must be an integer"),
        ({"step": -1}, "step must be an integer of at least 0, got -1"),
        ({"step": 2.0}, "step must be an integer"),
        ({"exp_avg": [1.0, 2.0]}, r"exp_avg must be an array, got \[1.0, 2.0\]"),
        ({"exp_avg": np.ones(3)}, r"exp_avg has float64 \(3,\), expected float64 \(2,\)"),
    ):
        with pytest.raises(ValueError, match=f"load_state_dict: {message}"):
            optimizer.load_state_dict({**saved, "state": [{**saved["state"][0], **change}]})
    (own,) = saved["state"]
    for state, message in (
        ({"state": [{"exp_avg": own["exp_avg"]}]}, "no state of Adam: there is no step, exp_avg_sq"),
        ({"state": [None]}, "expected a list of what Adam keeps"),
        ({"state": None}, "expected a list of what Adam keeps, got None"),
        ({"param_groups": None}, "expected a list of what Adam keeps, got None"),
        ({"param_groups": [{"lr": 0.1}]}, r"expected groups of \[1\] parameters"),
    ):
        with pytest.raises(ValueError, match=f"load_state_dict: .*{message}"):
            optimizer.load_state_dict({**saved, **state})
    now = optimizer.state_dict()
    assert now["param_groups"] == saved["param_groups"]
    assert now["state"][0]["step"] == 1
    np.testing.assert_array_equal(now["state"][0]["exp_avg"], own["exp_avg"])


def test_groups_and_parameters_can_not_be_appended_unnoticed():
    p = parameter([1.0])
    optimizer = nn.SGD([p], 0.1)
    with pytest.raises(AttributeError):
        optimizer.param_groups.append({"params": [p], "lr": 0.1})
    with pytest.raises(AttributeError):
        optimizer.param_groups[0]["params"].append(parameter([2.0]))


def test_momentum_of_bfloat16_can_be_loaded():
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    p = mg.tensor(np.ones(3, bfloat16), requires_grad=True)
    optimizer = nn.SGD([p], 0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(2):
        p.grad = np.ones(3, bfloat16)
        optimizer.step()
    saved = optimizer.state_dict()
    assert saved["state"][0]["momentum_buffer"].dtype == p.dtype == bfloat16
    optimizer.load_state_dict(saved)


def test_repr_shows_the_settings_of_each_group():
    p, q = parameter([1.0]), parameter([2.0])
    optimizer = nn.SGD([{"params": [p]}, {"params": [q], "lr": 0.5}], 0.1, momentum=0.9)
    assert repr(optimizer) == (
        "SGD(1 parameters, lr=0.1, momentum=0.9, weight_decay=0.0; "
        "1 parameters, lr=0.5, momentum=0.9, weight_decay=0.0)"
    )
    schedule = nn.StepLR(optimizer, 1, 0.5)
    schedule.step()
    assert repr(schedule) == "StepLR(step 1, lr 0.05, 0.25)"


def test_bad_parameters_are_refused():
    p = parameter([1.0])
    with pytest.raises(TypeError, match=r"got a module: give model.parameters\(\)"):
        nn.SGD(nn.Linear(2, 1), 0.1)
    with pytest.raises(TypeError, match="params must be a list of tensors, got a single tensor"):
        nn.SGD(p, 0.1)
    for empty in ([], iter(())):
        with pytest.raises(ValueError, match="SGD: got no parameters"):
            nn.SGD(empty, 0.1)
    for bad in (np.ones(2), mg.tensor([1.0]), p * 2, "weight"):
        with pytest.raises(TypeError, match="SGD: parameter 1 must be a tensor made with requires_grad=True"):
            nn.SGD([p, bad], 0.1)
    with pytest.raises(ValueError, match="SGD: a parameter was given twice"):
        nn.SGD([p, parameter([1.0]), p], 0.1)


def test_an_array_changed_in_place_by_the_user_still_belongs_to_the_user() -> None:
    array = np.ones(2)
    p, q = (mg.tensor(array, requires_grad=True) for _ in range(2))
    p.data *= 2
    p.grad = np.ones(2)
    nn.SGD([p], lr=0.1).step()
    np.testing.assert_array_equal(p.data, [1.9, 1.9])
    np.testing.assert_array_equal(q.data, [2, 2])


def test_an_optimiser_can_be_pickled_with_its_parameters():
    p = mg.tensor(np.ones(2), requires_grad=True)
    optimizer = nn.SGD([p], lr=0.1, momentum=0.9)
    for _ in range(2):
        p.grad = np.ones(2)
        optimizer.step()
    again = pickle.loads(pickle.dumps(optimizer))
    for one in (optimizer, again):
        one.param_groups[0]["params"][0].grad = np.ones(2)
        one.step()
    np.testing.assert_array_equal(again.param_groups[0]["params"][0].data, p.data)
