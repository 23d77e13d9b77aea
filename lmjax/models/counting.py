"""Sizes of any model, counted from its program instead of written as closed forms.

Shapes: T positions of one row.
"""

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.extend.core import jaxprs_in_params


class Products(NamedTuple):
    """The matrix products and convolutions of a program."""

    #: Floating-point operations: two for each multiplication.
    flops: float
    #: Bytes of their inputs that are not parameters.
    input_bytes: float


def parameters(model: nn.Module) -> dict[str, int]:
    """Return the number of parameters of each top-level module, and their `total`."""
    sizes = Counter[str]()
    for path, leaf in jax.tree_util.tree_leaves_with_path(_abstract(model)):
        sizes[path[0].key.replace("_", " ")] += math.prod(leaf.shape)
    return dict(sizes) | {"total": sum(sizes.values())}


def products(model: nn.Module, context: int) -> Products:
    """Count the matrix products of the forward pass for one row of `context` tokens."""
    ids_BT, params = jax.ShapeDtypeStruct((1, context), jnp.int32), _abstract(model)
    program = jax.make_jaxpr(lambda params, ids_BT: model.apply({"params": params}, ids_BT))(params, ids_BT)
    own = {math.prod(leaf.shape) for leaf in jax.tree.leaves(params)}
    counted = [
        (times * _flops(equation), times * _input_bytes(equation, own))
        for times, equation in _equations(program.jaxpr)
        if equation.primitive.name in ("dot_general", "conv_general_dilated")
    ]
    return Products(*map(float, map(sum, zip(*counted, strict=True)))) if counted else Products(0.0, 0.0)


def _abstract(model: nn.Module) -> Any:
    """The shapes of the parameters."""
    ids_BT = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    return jax.eval_shape(lambda ids_BT: model.init(jax.random.key(0), ids_BT)["params"], ids_BT)


def _equations(jaxpr: Any, times: int = 1) -> Iterator[tuple[int, Any]]:
    """Yield every primitive equation of a program with the number of times that it runs.

    A loop of unknown length counts once.
    """
    for equation in jaxpr.eqns:
        repeats = times * equation.params.get("length", 1) if equation.primitive.name == "scan" else times
        inner = list(jaxprs_in_params(equation.params))
        if equation.primitive.name == "cond":
            inner = inner[:1]
        yield from ([(times, equation)] if not inner else [])
        for program in inner:
            yield from _equations(program, repeats)


def _flops(equation: Any) -> int:
    left, right = (variable.aval.shape for variable in equation.invars[:2])
    result = math.prod(equation.outvars[0].aval.shape)
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return 2 * result * math.prod(left[axis] for axis in contracted)
    features = right[equation.params["dimension_numbers"].rhs_spec[0]]
    return 2 * result * math.prod(right) // features


def _input_bytes(equation: Any, parameter_sizes: set[int]) -> int:
    avals = [variable.aval for variable in equation.invars[:2]]
    return sum(aval.size * aval.dtype.itemsize for aval in avals if aval.size not in parameter_sizes)
