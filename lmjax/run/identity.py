"""Identity of a run: what must be equal for a resume, and the machine's record."""

import dataclasses
import math
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from lmjax import __version__
from lmjax.config import ClassificationConfig, Config, DataConfig, UserError, codec, extensions, presets
from lmjax.config.json_text import parse_json
from lmjax.config.policies import PolicyConfig
from lmjax.config.rewards import LearnedRewardConfig
from lmjax.config.user_files import parse_entry
from lmjax.journal.history import MEANS
from lmjax.journal.journal import Journal
from lmjax.parallel.mesh import describe_mesh
from lmjax.run import build, reward_model
from lmjax.run.build import Run
from lmjax.system import machine, paths
from lmjax.tasks import catalog

_SAME_CONTENT = ("data.cache", "data.exclude", "data.shuffle", "data.packed", "data.mixture_changes")


def resolved_like(config: Config, saved: Config) -> Config:
    """Fill in the values that the data determine, as in the saved configuration."""
    config = build.resolve(config, saved.model.vocab_size) if config.model.vocab_size == 0 else config
    if config.train.epochs and not config.train.epoch_tokens:
        train = dataclasses.replace(config.train, epoch_tokens=saved.train.epoch_tokens)
        config = dataclasses.replace(config, train=train)
    if isinstance(config.objective, ClassificationConfig) and isinstance(saved.objective, ClassificationConfig):
        labels = config.objective.labels or saved.objective.labels
        config = dataclasses.replace(config, objective=dataclasses.replace(config.objective, labels=labels))
    return config


def absolute(config: Config) -> Config:
    """Make paths absolute and record the extensions, to resume from any folder."""
    data, cache = config.data, config.runtime.compilation_cache
    choice = dataclasses.replace(data.tokenizer, path=_absolute(data.tokenizer.path))
    if isinstance(data, DataConfig):
        mixture = tuple(
            dataclasses.replace(source, files=tuple(map(_absolute, source.files))) for source in data.mixture
        )
        data = dataclasses.replace(data, mixture=mixture)
    else:  # records and conversations
        data = dataclasses.replace(data, validation_files=tuple(map(_absolute, data.validation_files)))
    files, folder = tuple(map(_absolute, data.files)), _absolute(data.cache)
    data = dataclasses.replace(data, files=files, tokenizer=choice, cache=folder)
    runtime = dataclasses.replace(config.runtime, compilation_cache=cache if cache == "off" else _absolute(cache))
    config = dataclasses.replace(config, data=data, init_from=_absolute(config.init_from), runtime=runtime)
    objective = config.objective
    if isinstance(objective, PolicyConfig) and isinstance(objective.reward, LearnedRewardConfig):
        reward = dataclasses.replace(objective.reward, run=_absolute(objective.reward.run))
        config = dataclasses.replace(config, objective=dataclasses.replace(objective, reward=reward))
    return dataclasses.replace(located_tasks(config), extensions=extensions.recorded(config))


def located_tasks(config: Config) -> Config:
    """Make the paths of tasks absolute; older runs recorded them as they were given."""
    tasks = tuple(map(catalog.located, config.evaluate.tasks))
    config = dataclasses.replace(config, evaluate=dataclasses.replace(config.evaluate, tasks=tasks))
    if not isinstance(config.data, DataConfig):
        return config
    listed = config.data.in_context
    named = {name: tuple(map(catalog.located, getattr(listed, name))) for name in ("tasks", "held_out")}
    data = dataclasses.replace(config.data, in_context=dataclasses.replace(listed, **named))
    return dataclasses.replace(config, data=data)


def _absolute(name: str) -> str:
    """Return the absolute form of a local path; other names stay, to be refused as given."""
    if not name.strip() or (paths.is_remote(name) and not os.path.lexists(name)):
        return name
    return os.path.abspath(os.path.expanduser(name))


def allowed_changes(saved: Config, config: Config, allow: Sequence[str]) -> list[str]:
    """Return the differences between two configurations.

    Keys of the devices and the runtime may always differ. A length that may differ replaces a length of another kind.

    Raises:
        UserError: Another key differs and is not in `allow`, or `allow` has an unknown key.
    """
    for key in allow:
        if key not in codec.keys(saved):
            raise UserError(f"--allow-change: {codec.unknown_key(key, saved)}")
    changed = codec.differences(saved, config)
    if not {*presets.LENGTHS}.isdisjoint(allow):
        allow = (*allow, *presets.LENGTHS)
    refused = [line for line in changed if line.partition(":")[0] not in allow and not line.startswith(MEANS)]
    if refused:
        refused = [_changed_files(saved, config) if line.startswith("extensions:") else line for line in refused]
        keys = " ".join(f"--allow-change {line.partition(':')[0]}" for line in refused)
        raise UserError(f"the run has another configuration ({'; '.join(refused)}); to change it: {keys}")
    return changed


def _changed_files(saved: Config, config: Config) -> str:
    """The differences of `extensions`, by file."""
    before, after = ({entry.path: entry.sha256 for entry in map(parse_entry, c.extensions)} for c in (saved, config))
    paths = [path for path in before | after if before.get(path) != after.get(path)]
    kinds = {
        path: "changed" if path in before and path in after else "new" if path in after else "left out"
        for path in paths
    }
    return "extensions: " + ", ".join(f"{path} {kind}" for path, kind in kinds.items())


def changes_data(changed: Sequence[str]) -> bool:
    """Whether differences (`allowed_changes`) concern the content of the prepared data."""
    keys = [line.partition(":")[0] for line in changed]
    return any(key.startswith("data.") and key not in _SAME_CONTENT for key in keys)


def recorded_data(run_dir: Path) -> str:
    """Return the hash of the data with which a run began, from its journal.

    It is empty if the journal has none.
    """
    try:
        with (run_dir / "journal.jsonl").open("rb") as journal:
            start = parse_json(journal.readline(1 << 20), "the journal")
    except (OSError, UserError):  # reported where the journal is opened
        return ""
    recorded = start.get("data_sha256") if isinstance(start, dict) else None
    return recorded if isinstance(recorded, str) else ""


def same_inputs(run: Run, journal: Journal) -> None:
    """Check that tokenizer, data and reward model are those with which the run began.

    Raises:
        UserError: One of them changed.
    """
    start = journal.records[0] if journal.records else {}
    for name, fingerprint in fingerprints(run).items():
        if start.get(name) != fingerprint:
            raise UserError(
                f"the {name.removesuffix('_sha256')} changed since the run began "
                f"(sha256 {start.get(name)} -> {fingerprint}); restore the old files, or start a new run"
            )


def fingerprints(run: Run) -> dict[str, Any]:
    """Return the hashes of tokenizer, data and reward model; a resume needs equal ones."""
    own = {"tokenizer_sha256": run.store.tokenizer.sha256, "data_sha256": run.store.fingerprint}
    return own | reward_model.fingerprint(run)


def versions(run: Run) -> dict[str, Any]:
    """Return the software and the devices of a session."""
    return {
        "lmjax": __version__,
        "python": platform.python_version(),
        "jax": jax.__version__,
        "devices": run.mesh.size,
        "processes": jax.process_count(),
        "platform": jax.default_backend(),
        "mesh": describe_mesh(run.mesh),
        "form": run.config.parallel.form,
        "xla_flags": machine.xla_flags(),
        "updates_at_once": run.dispatch.updates_per_dispatch,
    }


def tolerance(config: Config) -> float:
    """Return the relative difference allowed between losses on different devices.

    It is infinite if the devices draw different random numbers.
    """
    if config.parallel.form == "pmap" and config.model.dropout:
        return math.inf
    return 1e-5 if config.model.dtype == "float32" else 1e-2
