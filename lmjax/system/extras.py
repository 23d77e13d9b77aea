"""Commands that install optional packages of lmjax."""

from pathlib import Path

from lmjax.config.errors import UserError

_ROOT = Path(__file__).resolve().parents[2]
_SIZES = {"plan-tpu": "0.7 GB", "plan-gpu": "0.4 GB", "cuda": "3 GB"}  # of what is installed


def install_command(extra: str) -> str:
    """Return the command that installs an extra, from this checkout or the index."""
    if (_ROOT / "pyproject.toml").is_file():
        place = "." if Path.cwd() == _ROOT else str(_ROOT)
        command = f"pip install -e '{place}[{extra}]'"
    else:
        command = f"pip install 'lmjax[{extra}]'"
    return command + (f" ({_SIZES[extra]})" if extra in _SIZES else "")


def missing(what: str, package: str, extra: str, *, otherwise: str = "") -> UserError:
    """Return the error about a package that is not installed.

    Args:
        what: What needs it.
        package: The package.
        extra: The extra of lmjax that brings it.
        otherwise: What else the user can do.
    """
    return UserError(f"{what} needs {package}, which is not installed: {install_command(extra)}{otherwise}")
