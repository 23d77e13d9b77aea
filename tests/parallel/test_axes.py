"""Where the axes of arrays lie: the tables, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, PartitionSpec

from lmjax.config import (
    BERTConfig,
    ClassificationConfig,
    Config,
    GPTConfig,
    MeshConfig,
    ModelConfig,
    NNLMConfig,
    OptimizerConfig,
    ParallelConfig,
    RNNConfig,
    TransformerConfig,
    UserError,
)
from lmjax.config.codec import apply_overrides
from lmjax.models import registry
from lmjax.objectives.registry import objective_without_data
from lmjax.parallel import axes
from lmjax.parallel.mesh import describe_mesh, make_mesh, own_rows
from lmjax.pytrees import leaf_names
from lmjax.run import build

SIZES = {"width": 8, "heads": 2, "context": 16, "vocab_size": 32}
MODELS: list[ModelConfig] = [
    GPTConfig(layers=2, **SIZES, qk_norm=True, activation="swiglu", tied=False),
    GPTConfig(layers=2, **SIZES, positions="rotary", scan=False),
    BERTConfig(layers=2, **SIZES),
    TransformerConfig(layers=1, **SIZES, shared=False, norm_first=True),
    RNNConfig(cell="gru", layers=2, width=8, context=16, vocab_size=32),
    NNLMConfig(width=8, hidden=8, context=16, vocab_size=32, direct=True),
]


def one_device() -> Mesh:
    """All axes, on the device there is."""
    return jax.make_mesh((1, 1, 1, 1), axes.MESH, axis_types=(AxisType.Auto,) * 4, devices=jax.devices()[:1])


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.family)
def test_every_matrix_of_every_family_is_divided_by_fsdp_once_and_no_vector(model: ModelConfig) -> None:
    shapes = jax.eval_shape(lambda: build.init(build.without_data(of(model)))).params
    found = axes.specs(shapes, registry.logical_axes(model))
    for name, leaf in zip(leaf_names(shapes), jax.tree.leaves(shapes), strict=True):
        matrix = name.endswith(("kernel", "embedding")) and not name.startswith("next_sentence")
        assert len(found[name]) == leaf.ndim
        assert list(found[name]).count("fsdp") == matrix, name


def of(model: ModelConfig) -> Config:
    """A configuration that learns something with the model."""
    families = {
        "bert": ["objective.family=masked"],
        "transformer": ["objective.family=translation", "data.family=records"],
    }
    sizes = ["train.updates=1", "batch.microbatch=2", "batch.tokens=((0,128),)"]
    return apply_overrides(dataclasses.replace(Config(), model=model), [*families.get(model.family, []), *sizes])


def test_a_classifier_has_the_axes_of_its_layer() -> None:
    config = dataclasses.replace(of(MODELS[2]), objective=ClassificationConfig(labels=("a", "b")))
    objective = objective_without_data(config)
    inputs, named = objective.example()
    shapes = jax.eval_shape(objective.model.init, jax.random.key(0), *inputs, **named)["params"]
    assert axes.specs(shapes, registry.logical_axes(config.model))["classifier/kernel"] == PartitionSpec("fsdp", None)


@pytest.mark.parametrize("name", ["adamw", "lion", "adafactor", "muon"])
def test_moments_lie_where_their_parameters_do(name: str) -> None:
    config = dataclasses.replace(of(MODELS[0]), optimizer=OptimizerConfig(name=name, ema=0.9))  # type: ignore[arg-type]
    state = build.without_data(config).abstract_state
    places = {name: leaf.sharding.spec for name, leaf in zip(leaf_names(state), jax.tree.leaves(state), strict=True)}
    kernel = "blocks/mlp/up/kernel"
    assert places[f"params/{kernel}"] == places[f"ema/{kernel}"] == PartitionSpec(None, "fsdp", "tensor")
    moments = [spec for name, spec in places.items() if name.startswith("opt_state") and name.endswith(kernel)]
    assert moments
    if name != "adafactor":  # whose moments are rows and columns, of other shapes
        assert set(moments) == {PartitionSpec(None, "fsdp", "tensor")}


def test_one_mesh_axis_cannot_divide_two_axes_of_an_array() -> None:
    with pytest.raises(AssertionError, match="two of the axes"):
        axes.spec(("heads", "mlp"), axes.STORAGE)


def test_on_one_device_nothing_is_constrained() -> None:
    with axes.on(one_device(), {}):
        assert axes.current() is None
        assert axes.held("up", "kernel") is None
        x = jnp.zeros((2, 2))
        assert axes.constrain(x, "batch", None) is x


# ---- The mesh -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        (MeshConfig(data=-1, fsdp=-1), r"at most one may be -1"),
        (MeshConfig(data=0), r"sizes must be 1 or more"),
        (MeshConfig(data=2, fsdp=64), r"data=2, fsdp=64, sequence=1, tensor=1\) needs 128 devices, but there are"),
        (MeshConfig(tensor=64), r"needs 64 devices, but there are"),
    ],
)
def test_a_mesh_that_the_devices_do_not_make_is_refused(mesh: MeshConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_mesh(ParallelConfig(mesh=mesh), microbatch=8)


@pytest.mark.parametrize(
    ("model", "sizes", "message"),
    [
        (GPTConfig(width=60, heads=4), {"fsdp": 8}, r"model\.width=60 does not divide among .*fsdp=8; 64 would"),
        (GPTConfig(vocab_size=50257), {"tensor": 2}, r"model\.vocab_size=50257 .*tensor=2; 50258 would"),
        (GPTConfig(heads=12, key_heads=3), {"tensor": 2}, r"model\.key_heads=3"),
        (GPTConfig(context=100), {"sequence": 8}, r"model\.context=100 .*; 104 would"),
        (BERTConfig(), {"sequence": 2}, r"parallel\.mesh\.sequence=2: model\.family=bert does not support"),
        (RNNConfig(), {"tensor": 2}, r"parallel\.mesh\.tensor=2: model\.family=rnn does not support"),
        (NNLMConfig(width=8, hidden=12), {"fsdp": 8}, r"model\.hidden=12"),
    ],
)
def test_a_size_that_does_not_divide_names_its_key(model: ModelConfig, sizes: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        registry.check_mesh(model, sizes)


def test_a_mesh_of_one_process_holds_all_rows() -> None:
    mesh = make_mesh(ParallelConfig(devices=1), microbatch=4)
    assert mesh.axis_names == axes.MESH
    assert own_rows(mesh, 4) == slice(0, 4)
    assert describe_mesh(mesh) == "one device"


@dataclasses.dataclass(frozen=True)
class Stand:
    """What a mesh wants to know of a device."""

    id: int
    slice_index: int
    process_index: int
    platform: str = "cpu"
    device_kind: str = "cpu"


@pytest.mark.parametrize(
    ("mesh", "across"),
    [(MeshConfig(data=2, fsdp=2, tensor=2), "data"), (MeshConfig(data=1, fsdp=-1), "fsdp"), (MeshConfig(), "data")],
)
def test_of_two_slices_each_holds_a_half_of_the_rows_and_all_else_stays_within(mesh: MeshConfig, across: str) -> None:
    devices = [Stand(number, slice_index=number // 4, process_index=number // 2) for number in range(8)]
    made = make_mesh(ParallelConfig(mesh=mesh), microbatch=8, devices=devices)
    place = made.axis_names.index(across)
    slices = np.vectorize(lambda device: device.slice_index)(np.moveaxis(made.devices, place, 0))
    half = len(slices) // 2
    assert (slices[:half] == 0).all()
    assert (slices[half:] == 1).all()


def test_slices_that_divide_no_rows_are_refused() -> None:
    devices = [Stand(number, slice_index=number // 4, process_index=0) for number in range(8)]
    with pytest.raises(UserError, match=r"parallel\.mesh: data=1 does not divide among 2 slices"):
        make_mesh(ParallelConfig(mesh=MeshConfig(data=1, tensor=8)), microbatch=8, devices=devices)
