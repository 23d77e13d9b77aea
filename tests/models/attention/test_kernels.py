"""The kernels themselves need a GPU or a TPU; here one is interpreted, the other compiled as far as goes without."""

import re
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from lmjax.config import GPTConfig, UserError
from lmjax.models import gpt
from lmjax.models.attention import kernels
from lmjax.models.attention.attend import attend
from lmjax.parallel import axes

TPU, CPU = SimpleNamespace(platform="tpu"), SimpleNamespace(platform="cpu")
GPU = SimpleNamespace(platform="gpu", compute_capability="9.0")
OLD, OTHER = (SimpleNamespace(platform="gpu", compute_capability=name) for name in ("7.5", "gfx90a"))
NARROW = {"dtype": "bfloat16"}


@pytest.fixture
def cudnn_there(monkeypatch):
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91_000)


def chosen(form, device, T, *, S=0, head_dim=64, dtype="float32", causal=True, **masks):
    q, k = (jax.ShapeDtypeStruct((2, n, 4, head_dim), jnp.float32) for n in (T, S or T))
    return kernels.chosen(form, kernels.Case(device, dtype, causal, **masks), q, k)


@pytest.mark.parametrize(
    ("device", "T", "case", "form"),
    [
        (CPU, 2047, {}, "xla"),
        (CPU, 2048, {}, "blockwise"),
        (TPU, 1023, {}, "xla"),
        (TPU, 1024, {"packed": True}, "splash"),
        (TPU, 2048, {"dropout": True}, "blockwise"),
        (TPU, 2048, {"masked": True}, "blockwise"),
        (TPU, 1024, {"causal": False}, "xla"),
        (GPU, 64, NARROW, "cudnn"),
        (GPU, 64, {"causal": False, "S": 32, **NARROW}, "cudnn"),
        (GPU, 64, {}, "xla"),
        (GPU, 64, {"head_dim": 65, **NARROW}, "xla"),
        (GPU, 2048, {"packed": True, **NARROW}, "blockwise"),
        (OLD, 64, NARROW, "xla"),
        (OTHER, 64, NARROW, "xla"),
    ],
)
def test_auto_takes_the_kernel_of_the_device_where_it_can(cudnn_there, device, T, case, form):
    assert chosen("auto", device, T, **case) == form


@pytest.mark.parametrize(
    ("form", "device", "case", "says"),
    [
        ("splash", CPU, {}, "attention=splash is for TPUs, not for the platform cpu; set model.attention=auto"),
        ("splash", TPU, {"dropout": True}, "set model.dropout=0"),
        ("splash", TPU, {"causal": False}, "causal attention"),
        ("cudnn", TPU, NARROW, "is for GPUs"),
        ("cudnn", GPU, {}, "set model.dtype=bfloat16"),
        ("cudnn", GPU, {"packed": True, **NARROW}, "set data.packed=false"),
        ("cudnn", OLD, NARROW, "8.0 or more, not 7.5"),
        ("cudnn", GPU, {"head_dim": 65, **NARROW}, "head dim"),
    ],
)
def test_a_kernel_that_cannot_says_what_to_set(cudnn_there, form, device, case, says):
    with pytest.raises(UserError, match=re.escape(says)):
        chosen(form, device, 1024, **case)


def test_a_kernel_stands_back_where_scoring_hides_single_keys():
    assert chosen("splash", TPU, 2048, masked=True) == "blockwise"
    assert chosen("cudnn", CPU, 64, masked=True) == "xla"


def test_where_cudnn_is_not_installed_auto_does_without(monkeypatch):
    def missing():
        raise RuntimeError("cuDNN is not detected.")

    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", missing)
    assert chosen("auto", GPU, 64, **NARROW) == "xla"
    with pytest.raises(UserError, match="cuDNN is not detected"):
        chosen("cudnn", GPU, 64, **NARROW)


def test_a_divided_sequence_takes_blocks():
    mesh = SimpleNamespace(shape={"sequence": 2}, size=2)
    with axes.on(mesh, {}):  # type: ignore[arg-type]
        assert chosen("auto", TPU, 64) == "blockwise"
        with pytest.raises(UserError, match=re.escape("mesh.sequence=2 shards them; set model.attention=blockwise")):
            chosen("xla", CPU, 64)


def test_parameters_are_made_where_the_form_cannot_be_computed():
    model = gpt.GPT(GPTConfig(layers=1, width=16, heads=2, context=8, vocab_size=8, attention="splash"))
    params = jax.eval_shape(lambda: gpt.init_params(model, 0))
    with pytest.raises(UserError, match="is for TPUs"):
        jax.eval_shape(lambda p: model.apply({"params": p}, jnp.zeros((1, 8), jnp.int32)), params)


def arrays(T, key_heads, K):
    rng = np.random.default_rng(0)
    return [rng.standard_normal((1, T, heads, K)).astype(np.float32) for heads in (2, key_heads, key_heads, 2)]


def value_and_gradients(f, q, k, v, g):
    y, pull = jax.vjp(f, q, k, v)
    return y, *pull(g)


@pytest.mark.slow
def test_splash_gives_what_attend_gives():
    """Of a length that is no multiple of its blocks, with documents and shared keys."""
    given, segments_BT = arrays(140, 1, 8), np.sort(np.random.default_rng(1).integers(0, 4, (1, 140)), axis=1)
    splash = partial(kernels.splash, segments_BT=segments_BT.astype(np.int32), interpret=True)
    ours = jax.jit(partial(value_and_gradients, splash))(*given)
    plain = partial(attend, causal=True, segments_BT=segments_BT, form="xla")
    for a, b in zip(ours, jax.jit(partial(value_and_gradients, plain))(*given), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6 * np.abs(b).max())  # float32


@pytest.mark.parametrize(
    ("form", "device", "platform", "calls"),
    [
        ("cudnn", GPU, "cuda", ["__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"]),
        ("splash", TPU, "tpu", ["tpu_custom_call"] * 3),
    ],
)
def test_a_program_for_the_device_calls_its_kernel(cudnn_there, monkeypatch, form, device, platform, calls):
    """In the forward pass and in the backward pass."""
    monkeypatch.setattr(kernels, "device", lambda: device)
    attention = partial(attend, causal=True, dtype="bfloat16", form=form)
    traced = jax.jit(partial(value_and_gradients, attention)).trace(*arrays(256, 2, 64))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert sorted(re.findall(r"@(__cudnn\$\w+|tpu_custom_call)\(", text)) == calls


@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices")
@pytest.mark.parametrize("form", ["blockwise", "splash"])
def test_a_mesh_divides_it(monkeypatch, form):
    monkeypatch.setattr(kernels, "device", lambda: TPU)
    monkeypatch.setattr(kernels, "splash", partial(kernels.splash, interpret=True))
    shape = (1, 2, 2, 2) if form == "blockwise" else (2, 2, 1, 2)
    given, ids = [np.repeat(x, 4, axis=0) for x in arrays(140, 2, 8)], np.arange(140)[None] // 50 * np.ones((4, 1), int)
    run = partial(value_and_gradients, partial(attend, causal=True, segments_BT=ids))
    expected = run(*given)
    with axes.on(jax.make_mesh(shape, axes.MESH, axis_types=(AxisType.Auto,) * 4), {}):
        found = jax.jit(partial(value_and_gradients, partial(attend, causal=True, segments_BT=ids, form=form)))(*given)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6 * np.abs(b).max())  # float32
