"""What must be equal for a resume: configuration, inputs, machine."""

import dataclasses
import math
import os
import platform
from collections.abc import Sequence
from typing import Any

import jax

from lmjax import __version__
from lmjax.config import ClassificationConfig, Config, DataConfig, UserError, codec, errors
from lmjax.journal.history import MEANS
from lmjax.journal.journal import Journal
from lmjax.parallel.mesh import describe_mesh
from lmjax.run import build, dispatch
from lmjax.run.build import Run
from lmjax.system import machine


def resolved_like(config: Config, saved: Config) -> Config:
    """The configuration with what a run takes from its data filled in as it was."""
    config = build.resolve(config, saved.model.vocab_size) if config.model.vocab_size == 0 else config
    if isinstance(config.objective, ClassificationConfig) and isinstance(saved.objective, ClassificationConfig):
        labels = config.objective.labels or saved.objective.labels
        config = dataclasses.replace(config, objective=dataclasses.replace(config.objective, labels=labels))
    return config


def absolute(config: Config) -> Config:
    """The same configuration with absolute paths, so that a run can be resumed from any folder."""
    data, cache = config.data, config.runtime.compilation_cache
    choice = dataclasses.replace(data.tokenizer, path=_absolute(data.tokenizer.path))
    if isinstance(data, DataConfig):
        mixture = tuple(
            dataclasses.replace(source, files=tuple(map(_absolute, source.files))) for source in data.mixture
        )
        data = dataclasses.replace(data, mixture=mixture)
    else:
        data = dataclasses.replace(data, validation_files=tuple(map(_absolute, data.validation_files)))
    data = dataclasses.replace(data, files=tuple(map(_absolute, data.files)), tokenizer=choice)
    runtime = dataclasses.replace(config.runtime, compilation_cache=cache if cache == "off" else _absolute(cache))
    return dataclasses.replace(config, data=data, init_from=_absolute(config.init_from), runtime=runtime)


def _absolute(name: str) -> str:
    """Absolute form of a path; an empty path stays empty."""
    return os.path.abspath(os.path.expanduser(name)) if name else ""


def allowed_changes(saved: Config, config: Config, allow: Sequence[str]) -> list[str]:
    """The differences, each of them allowed, as those of devices and of the runtime are. UserError: one is not."""
    for key in allow:
        if key not in codec.keys(saved):
            raise UserError(f"--allow-change {key}: unknown key{errors.nearest(key, codec.keys(saved))}")
    changed = codec.differences(saved, config)
    refused = [line for line in changed if line.partition(":")[0] not in allow and not line.startswith(MEANS)]
    if refused:
        keys = " ".join(f"--allow-change {line.partition(':')[0]}" for line in refused)
        raise UserError(f"the run was made with another configuration ({'; '.join(refused)}); to change it: {keys}")
    return changed


def same_inputs(run: Run, journal: Journal) -> None:
    """UserError: the tokenizer or the data are not those the run began with."""
    began = journal.records[0] if journal.records else {}
    for name, now in fingerprints(run).items():
        if began.get(name) != now:
            raise UserError(
                f"the {name.removesuffix('_sha256')} changed since the run began (sha256 {began.get(name)} -> {now}); "
                f"bring the old files back, or start a new run"
            )


def fingerprints(run: Run) -> dict[str, Any]:
    """What must be equal for a resume: the hashes of its tokenizer and its data."""
    return {"tokenizer_sha256": run.store.tokenizer.sha256, "data_sha256": run.store.fingerprint}


def versions(run: Run) -> dict[str, Any]:
    """What a session runs on: the software and the devices."""
    found = {"devices": run.mesh.size, "processes": jax.process_count(), "platform": jax.default_backend()}
    found |= {
        "mesh": describe_mesh(run.mesh),
        "form": run.config.parallel.form,
        "xla_flags": machine.xla_flags(),
    }
    found |= {"updates_at_once": dispatch.together(run)}
    return {"lmjax": __version__, "python": platform.python_version(), "jax": jax.__version__, **found}


def tolerance(config: Config) -> float:
    """By how much, relative, the losses of other devices may differ; infinite where they draw other random numbers."""
    if config.parallel.form == "pmap" and config.model.dropout:
        return math.inf
    return 1e-5 if config.model.dtype == "float32" else 1e-2
