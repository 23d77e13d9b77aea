"""lmjax: language-model pretraining in JAX, where a run is a pure function of (config, seed, journal)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmjax.api import Config as Config
    from lmjax.api import UserError as UserError
    from lmjax.api import evaluate as evaluate
    from lmjax.api import generate as generate
    from lmjax.api import load as load
    from lmjax.api import plan as plan
    from lmjax.api import resume as resume
    from lmjax.api import train as train

__version__ = "0.1.0"
__all__ = ["Config", "UserError", "evaluate", "generate", "load", "plan", "resume", "train"]


def __getattr__(name: str) -> Any:
    """The public functions, imported at first use: `import lmjax` alone costs nothing."""
    if name not in __all__:
        raise AttributeError(f"module 'lmjax' has no attribute '{name}'")
    from lmjax import api

    return getattr(api, name)
