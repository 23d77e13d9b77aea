"""What a saved configuration may select. Imports no JAX.

A `config.json` may come from anywhere, so it is data: it selects no compiled programs, no flags that name files, and no
place outside its run. Such settings are used only if the user gives them on the command line.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, replace
from typing import Any

from lmjax.config.errors import printable
from lmjax.config.schema import Config, RuntimeConfig

Report = Callable[[str], None]

#: Settings that a saved configuration never selects: places to write, and programs to load.
RESERVED = ("data.cache", "runtime.compilation_cache")
# Flags that change how a program is compiled: a truth value, a number or an instruction set. The others can name files
# to write or libraries to load.
_FLAG = re.compile(r"--xla_(cpu|gpu|tpu)_\w+=(true|false|\d{1,9}|SSE\w+|AVX\w*|AMX\w*)", re.ASCII)
_FILES = re.compile(r"dump|dir|path|file|cache|load|save|log|lib|plugin|command")


def is_harmless(flag: str) -> bool:
    """Return whether a flag of XLA can neither name a file nor select a library."""
    return bool(_FLAG.fullmatch(flag)) and not _FILES.search(flag.partition("=")[0])


def for_reading(config: Config) -> tuple[Config, list[str]]:
    """Return the configuration for commands that read a run.

    It has no `runtime.*` and no `track.wandb`. `data.cache` stays: a command that reads a run reads prepared tokens
    there, and writes nothing.

    Returns:
        The configuration, and the changes `key=value` that would restore what was left out.
    """
    return _without(config, ("track.wandb", *(f"runtime.{item.name}" for item in fields(RuntimeConfig))))


def for_training(config: Config) -> tuple[Config, list[str]]:
    """Return the configuration for commands that train.

    It has no reserved settings and no flags but harmless ones.

    Returns:
        The configuration, and the changes `key=value` that would restore what was left out.
    """
    config, ignored = _without(config, RESERVED)
    default = RuntimeConfig()
    for name in ("xla_flags", "gpu_flags"):
        flags = getattr(config.runtime, name)
        harmless = tuple(flag for flag in flags if is_harmless(flag))
        if flags not in (harmless, getattr(default, name)):
            ignored.append(_change(f"runtime.{name}", flags))
            config = replace(config, runtime=replace(config.runtime, **{name: harmless}))
    return config, ignored


def report(config: Config, ignored: Iterable[str], changes: Sequence[str], *, where: str, show: Report) -> None:
    """Show the ignored settings of a saved configuration, and the `runtime.*` in use.

    Args:
        config: The configuration that is used, before the changes.
        ignored: What `for_reading` or `for_training` left out.
        changes: The changes of the user, whose keys are not mentioned.
        where: The file.
        show: Shows a line of text.
    """
    given = {change.partition("=")[0].strip() for change in changes}
    left_out = [change for change in ignored if not _is_given(change.partition("=")[0], given)]
    if left_out:
        show(
            f"ignored in {where}: {' '.join(left_out)} (a file selects no cache, no account, and no flags that name "
            "files); to use them, give them on the command line"
        )
    default = RuntimeConfig()
    used = [
        _change(f"runtime.{item.name}", getattr(config.runtime, item.name))
        for item in fields(RuntimeConfig)
        if getattr(config.runtime, item.name) != getattr(default, item.name)
        and not _is_given(f"runtime.{item.name}", given)
    ]
    if used:
        show(f"used from {where}: {' '.join(used)}")


def _is_given(key: str, given: set[str]) -> bool:
    return key in given or key.partition(".")[0] in given


def _without(config: Config, keys: Sequence[str]) -> tuple[Config, list[str]]:
    ignored = []
    for key in dict.fromkeys(keys):
        group_name, _, name = key.partition(".")
        group: Any = getattr(config, group_name)
        default = next(item.default for item in fields(group) if item.name == name)
        value = getattr(group, name)
        if value != default:
            ignored.append(_change(key, value))
            config = replace(config, **{group_name: replace(group, **{name: default})})
    return config, ignored


def _change(key: str, value: Any) -> str:
    text = f"[{','.join(map(str, value))}]" if isinstance(value, tuple) else str(value)
    return f"{key}={printable(text, 1000)}"
