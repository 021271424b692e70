import math

import numpy as np
import pytest

import nn

SHAPE = (400, 300)
NORMAL = {  # standard deviation
    "lecun_normal": 1 / math.sqrt(400),
    "glorot_normal": math.sqrt(2 / 700),
    "he_normal": math.sqrt(2 / 400),
}
UNIFORM = {  # bound
    "lecun_uniform": math.sqrt(3 / 400),
    "glorot_uniform": math.sqrt(6 / 700),
    "he_uniform": math.sqrt(6 / 400),
}


@pytest.mark.parametrize(("name", "std"), NORMAL.items())
def test_normal(name, std):
    W = getattr(nn.init, name)(SHAPE, 0, np.float64)
    assert W.shape == SHAPE
    assert W.std() == pytest.approx(std, rel=0.01)  # 120,000 draws: standard error 0.2 %
    assert abs(W.mean()) < 0.02 * std
    assert np.mean(np.abs(W) > 2 * std) == pytest.approx(0.0455, abs=0.003)
    np.testing.assert_allclose(W, np.random.default_rng(0).standard_normal(SHAPE) * std, rtol=1e-15)


@pytest.mark.parametrize(("name", "bound"), UNIFORM.items())
def test_uniform(name, bound):
    W = getattr(nn.init, name)(SHAPE, 0, np.float64)
    assert W.shape == SHAPE
    assert 0.999 * bound < np.abs(W).max() <= bound
    assert W.std() == pytest.approx(bound / math.sqrt(3), rel=0.01)
    assert abs(W.mean()) < 0.02 * bound


@pytest.mark.parametrize("name", [*NORMAL, *UNIFORM])
def test_seeds_and_dtypes(name):
    init = getattr(nn.init, name)
    W = init((5, 4), 7, np.float64)
    assert init((5, 4), 7, np.float64).tobytes() == W.tobytes()
    assert init((5, 4), np.random.default_rng(7), np.float64).tobytes() == W.tobytes()
    assert not np.array_equal(init((5, 4), 8, np.float64), W)
    assert not np.array_equal(init((5, 4)), init((5, 4)))  # None: a new seed each time
    single = init((5, 4), 7)
    assert single.dtype == np.float32
    np.testing.assert_array_equal(single, W.astype(np.float32))
    rng = np.random.default_rng(7)
    first, second = init((5, 4), rng), init((5, 4), rng)
    np.testing.assert_array_equal(first, single)
    assert not np.array_equal(first, second)  # a generator moves on
