"""Language-model pretraining in JAX: a run is a pure function of (config, seed, journal)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmjax.api import Config as Config
    from lmjax.api import UserError as UserError
    from lmjax.api import evaluate as evaluate
    from lmjax.api import generate as generate
    from lmjax.api import load as load
    from lmjax.api import plan as plan
    from lmjax.api import resume as resume
    from lmjax.api import sweep as sweep
    from lmjax.api import train as train
    from lmjax.config.extensions import register_callback as register_callback
    from lmjax.config.extensions import register_family as register_family
    from lmjax.config.extensions import register_metric as register_metric
    from lmjax.config.extensions import register_objective as register_objective
    from lmjax.config.extensions import register_optimizer as register_optimizer
    from lmjax.config.extensions import register_reward as register_reward
    from lmjax.config.extensions import register_schedule as register_schedule
    from lmjax.config.extensions import register_source as register_source

__version__ = "0.1.0"
__all__ = [
    "Config",
    "UserError",
    "evaluate",
    "generate",
    "load",
    "plan",
    "register_callback",
    "register_family",
    "register_metric",
    "register_objective",
    "register_optimizer",
    "register_reward",
    "register_schedule",
    "register_source",
    "resume",
    "sweep",
    "train",
]


def __getattr__(name: str) -> Any:
    """The public functions, imported at first use: `import lmjax` alone costs nothing."""
    if name not in __all__:
        raise AttributeError(f"module 'lmjax' has no attribute '{name}'")
    if name.startswith("register_"):
        from lmjax.config import extensions

        return getattr(extensions, name)
    from lmjax import api

    return getattr(api, name)
