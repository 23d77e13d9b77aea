import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmjax.inference import one_row


def found(x_D: np.ndarray, w_DF: np.ndarray, dtype: str) -> np.ndarray:
    return np.asarray(jax.jit(lambda x, w: one_row.times(x, one_row.laid_out(w, dtype)))(x_D, w_DF))


# one group, one with zeros behind, many groups, so many that they are added up twice
@pytest.mark.slow
@given(D=st.sampled_from([1, 5, 16, 48, 130, 512, 513, 1536]), F=st.integers(1, 20), seed=st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_the_product_is_numpys(D: int, F: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x_D, w_DF = rng.normal(size=D).astype(np.float32), rng.normal(size=(D, F)).astype(np.float32)
    size_F = np.abs(x_D.astype(float)) @ np.abs(w_DF.astype(float))  # what rounding errors are a share of
    error_F = np.abs(found(x_D, w_DF, "float32") - x_D.astype(float) @ w_DF.astype(float))
    assert (error_F <= 40 * 2**-24 * size_F).all()  # each number goes through fewer than 40 additions
    x_D, w_DF = (np.asarray(jnp.asarray(each, jnp.bfloat16).astype(jnp.float32)) for each in (x_D, w_DF))
    error_F = np.abs(found(x_D, w_DF, "bfloat16") - x_D.astype(float) @ w_DF.astype(float))
    assert (error_F <= 40 * 2**-24 * size_F).all()  # products of bfloat16 are exact in float32


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-40, 3.4e38, float("inf"), float("nan")])
def test_every_bfloat16_is_unpacked_as_it_was(value: float) -> None:
    w_DF = np.full((3, 2), value, np.float32)
    expected = np.asarray(jnp.asarray(w_DF, jnp.bfloat16).astype(jnp.float32))[1]
    y_F = found(np.array([0, 1, 0], np.float32), np.where([[0], [1], [0]], w_DF, 0), "bfloat16")
    # XLA for CPU may take subnormal numbers for 0
    np.testing.assert_allclose(y_F, expected, atol=2e-38)


def test_the_row_is_rounded_as_products_round_it() -> None:
    x_D, w_DF = np.array([1 + 2**-9], np.float32), np.ones((1, 1), np.float32)
    assert found(x_D, w_DF, "float32")[0] == 1 + 2**-9
    assert found(x_D, w_DF, "bfloat16")[0] == 1
