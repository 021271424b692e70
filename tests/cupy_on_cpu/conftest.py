"""What the tests of the stand-in share."""

import numpy as np
import pytest

from tests.cupy_on_cpu import install, unavailable


@pytest.fixture(scope="session")
def cp():
    reason = unavailable()
    if reason is not None:
        pytest.skip(reason)
    return install()


@pytest.fixture
def rng():
    return np.random.default_rng(0)
