import copy
import pickle
import re

import numpy as np
import pytest

import microgradnd as mg
import nn


def parameter(*shape, dtype=np.float64):
    return mg.tensor(np.arange(1.0, 1 + np.prod(shape)).reshape(shape), dtype, requires_grad=True)


class Scale(nn.Module):
    def __init__(self, n=2):
        self.factor = parameter(n)

    def forward(self, x):
        return self.factor * x


class Everything(nn.Module):
    """Tensors and modules as attributes and inside lists, tuples and dicts."""

    def __init__(self):
        self.z = parameter(1)
        self.blocks = [Scale(), (parameter(2), {"left": Scale(), "deep": [parameter(3)]})]
        self.constant = mg.tensor([1.0, 2.0])
        self.a = parameter(4)
        self.text, self.number, self.nothing = "text", 3, None
        self.arrays = [np.ones(2), "text", 5]


NAMES = ["z", "blocks.0.factor", "blocks.1.0", "blocks.1.1.left.factor", "blocks.1.1.deep.0", "a"]


def test_parameters_are_found_in_the_order_of_definition():
    model = Everything()
    assert [name for name, _ in model.named_parameters()] == NAMES
    assert [name for name, _ in model.named_tensors()] == [*NAMES[:5], "constant", "a"]
    expected = [model.z, model.blocks[0].factor, model.blocks[1][0], model.blocks[1][1]["left"].factor]
    expected += [model.blocks[1][1]["deep"][0], model.a]
    assert all(a is b for a, b in zip(model.parameters(), expected, strict=True))
    assert list(model.modules()) == [model, model.blocks[0], model.blocks[1][1]["left"]]


def test_a_parameter_that_appears_twice_counts_once_under_its_first_name():
    model = Scale()
    model.again = model.factor
    model.inner = [model.factor, Scale()]
    model.inner.append(model.inner[1])
    assert [name for name, _ in model.named_parameters()] == ["factor", "inner.1.factor"]
    assert len(list(model.modules())) == 2


def test_cycles_end():
    root, child = Scale(), Scale()
    root.child, child.parent = child, root
    child.relatives = [root, child]
    assert [name for name, _ in root.named_parameters()] == ["factor", "child.factor"]
    assert list(child.modules()) == [child, root]


@pytest.mark.parametrize(
    "copied", [lambda model: model, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))]
)
def test_frozen_tensors_stay_parameters(copied):
    """Else loops over the parameters, to train them again or to follow another model, would go over nothing."""
    model = Scale()
    model.factor.requires_grad = False
    model.table = mg.tensor([1.0])  # state that is none
    model = copied(model)
    assert [name for name, _ in model.named_parameters()] == ["factor"]
    assert list(model.state_dict()) == ["factor", "table"]
    assert not model.factor.requires_grad
    assert model.requires_grad_() is model
    assert model.factor.requires_grad
    assert not model.table.requires_grad
    assert not copied(model.requires_grad_(False)).factor.requires_grad


def test_optimisers_leave_frozen_parameters_alone_until_they_are_trained_again():
    model = nn.Sequential(nn.Linear(2, 2, rng=0), nn.Linear(2, 1, rng=1))
    backbone = model.layers[0].requires_grad_(False)
    optimizer = nn.Adam(model.parameters(), lr=0.1)
    before = model.state_dict()
    for frozen in (True, False):
        backbone.requires_grad_(not frozen)
        for _ in range(2):
            model.zero_grad()
            optimizer.zero_grad()
            model(np.ones((3, 2), np.float32)).sum().backward()
            nn.clip_grad_norm(model.parameters(), 1.0)
            optimizer.step()
        changed = [name for name, x in model.state_dict().items() if (x != before[name]).any()]
        assert changed == [name for name in before if not frozen or name.startswith("layers.1")]
    with pytest.raises(TypeError, match="parameter 0 must be a tensor made with requires_grad=True"):
        nn.SGD([mg.tensor([1.0])], lr=0.1)


def test_forward_is_what_a_call_does():
    np.testing.assert_array_equal(Scale()(mg.tensor([3.0, 5.0])).data, [3, 10])
    with pytest.raises(TypeError, match=r"Module defines no forward\(self, \.\.\.\)"):
        nn.Module()(1)


def test_zero_grad_forgets_all_gradients():
    model = Everything()
    mg.concatenate([p * 2 for p in model.parameters()]).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    model.zero_grad()
    assert all(p.grad is None for p in model.parameters())


def test_train_and_eval_reach_every_module():
    model = Everything()
    assert all(module.training for module in model.modules())
    assert model.eval() is model
    assert not any(module.training for module in model.modules())
    assert model.train() is model
    assert all(module.training for module in model.modules())
    model.blocks[0].eval()
    assert [module.training for module in model.modules()] == [True, False, True]
    assert Scale().training  # nothing was set on the class


def test_state_dict_holds_copies():
    model = Everything()
    state = model.state_dict()
    assert list(state) == [name for name, _ in model.named_tensors()]
    for name, tensor in model.named_tensors():
        np.testing.assert_array_equal(state[name], tensor.data)
        assert not np.shares_memory(state[name], tensor.data)


def test_load_state_dict_copies_and_keeps_the_tensors():
    model, other = Everything(), Everything()
    for tensor in other.parameters():
        tensor.data = tensor.data * -1
    state = other.state_dict()
    before = model.parameters()
    model.load_state_dict(state)
    assert all(a is b for a, b in zip(model.parameters(), before, strict=True))
    for name, tensor in model.named_tensors():
        np.testing.assert_array_equal(tensor.data, state[name])
        assert not np.shares_memory(tensor.data, state[name])
    assert model.z.data[0] == -1


def test_load_state_dict_converts_to_the_dtype_of_the_tensor():
    model = Scale()
    model.load_state_dict({"factor": np.array([0.5, 0.25], np.float32)})
    assert model.factor.dtype == np.float64
    np.testing.assert_array_equal(model.factor.data, [0.5, 0.25])
    model.load_state_dict({"factor": [3, 4]})
    np.testing.assert_array_equal(model.factor.data, [3.0, 4.0])
    single = nn.Linear(2, 2, bias=False)
    single.load_state_dict({"weight": np.full((2, 2), 0.1)})
    assert single.weight.dtype == np.float32
    np.testing.assert_array_equal(single.weight.data, np.full((2, 2), 0.1, np.float32))


def test_load_state_dict_lists_all_problems_and_changes_nothing():
    model = Everything()
    state = {name: -value for name, value in model.state_dict().items()}
    del state["z"], state["blocks.1.0"]
    state |= {"a": np.zeros((2, 2)), "constant": np.zeros(3), "one": np.zeros(1), "two": np.zeros(1)}
    before = model.state_dict()
    with pytest.raises(ValueError, match="nothing loaded into Everything") as error:
        model.load_state_dict(state)
    for problem in (
        "missing z;",
        "missing blocks.1.0;",
        "unexpected one;",
        "unexpected two;",
        "a has shape (2, 2), expected (4,)",
        "constant has shape (3,), expected (2,)",
    ):
        assert problem in str(error.value)
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_load_state_dict_changes_nothing_when_a_value_can_not_be_converted():
    model = nn.Sequential(Scale(), Scale())
    for bad in (np.array([1j, 2]), np.array(["x", "y"])):
        with pytest.raises(TypeError, match=re.escape("nothing loaded: layers.1.factor")):
            model.load_state_dict({"layers.0.factor": np.zeros(2), "layers.1.factor": bad})
        np.testing.assert_array_equal(model[0].factor.data, [1, 2])


def test_loading_does_not_disturb_a_graph_recorded_before():
    model = Scale()
    loss = (model.factor * model.factor).sum()
    model.load_state_dict({"factor": [10.0, 20.0]})
    loss.backward()
    np.testing.assert_array_equal(model.factor.grad.data, [2, 4])  # of the old values


def test_deepcopy_and_pickle_give_independent_models():
    model = nn.MLP([3, 4, 2], rng=0)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        for (name, a), (other_name, b) in zip(model.named_parameters(), twin.named_parameters(), strict=True):
            assert name == other_name
            np.testing.assert_array_equal(a.data, b.data)
            assert not np.shares_memory(a.data, b.data)


def test_repr_shows_the_tree():
    assert repr(nn.Linear(3, 4)) == "Linear(3, 4, bias=True)"
    assert repr(nn.ReLU()) == "ReLU()"
    assert repr(nn.Softmax(axis=0)) == "Softmax(axis=0)"
    assert repr(nn.Sequential(nn.MLP([3, 2], rng=0), nn.ReLU())) == (
        "Sequential(\n  (layers.0): MLP(\n    (layers.0): Linear(3, 2, bias=True)\n  )\n  (layers.1): ReLU()\n)"
    )


def test_results_kept_in_attributes_are_no_parameters():
    class Keeping(nn.Module):
        def __init__(self):
            self.layer = nn.Linear(2, 3, rng=0)

        def forward(self, x):
            self.hidden = self.layer(x)
            return self.hidden

    model = Keeping()
    model(np.ones((1, 2), np.float32))
    assert [name for name, _ in model.named_parameters()] == ["layer.weight", "layer.bias"]


def test_cycles_have_a_repr():
    class Child(nn.Module):
        pass

    parent, child = nn.Sequential(), Child()
    parent.child, child.parent = child, parent
    assert "Child" in repr(parent)


def test_names_that_collide_are_refused():
    class Colliding(nn.Module):
        def __init__(self):
            self.parts = {0: mg.tensor([1.0], requires_grad=True), "0": mg.tensor([2.0], requires_grad=True)}

    with pytest.raises(ValueError, match=r"two tensors of Colliding have the name parts.0"):
        Colliding().state_dict()
    with pytest.raises(ValueError, match=r"load_state_dict: two tensors of Colliding have the name parts.0"):
        Colliding().load_state_dict({"parts.0": np.ones(1)})


def test_forward_can_be_replaced():
    layer = nn.Linear(1, 1, rng=0)
    layer.forward = lambda x: "replaced"
    assert layer(None) == "replaced"


def test_repr_shows_functions_among_the_layers():
    layer = nn.Linear(2, 2, rng=0)
    layer.forward = lambda x: x
    assert repr(layer) == "Linear(2, 2, bias=True)"
    assert repr(nn.Sequential(nn.Linear(3, 4, rng=0), mg.relu, lambda x: x)) == (
        "Sequential(\n  (layers.0): Linear(3, 4, bias=True)\n  (layers.1): relu\n  (layers.2): <lambda>\n)"
    )
