"""The Dockerfile installs what a checkout has."""

import re
import shlex
import tomllib

from tests import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text()


def test_every_file_that_is_copied_exists_and_is_not_ignored() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [name for line in re.findall(r"^COPY (.*)", DOCKERFILE, re.M) for name in shlex.split(line)[:-1]]
    assert {*copied} == kept
    assert all((ROOT / name).exists() for name in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert {project["project"]["readme"], *project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]} <= kept
    assert {*project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]} <= kept
    assert {*re.findall(r"EXTRA=(\w+)", DOCKERFILE)} <= project["project"]["optional-dependencies"].keys()


def test_the_image_has_a_supported_python() -> None:
    version = tuple(map(int, re.findall(r"^FROM python:(\d+)\.(\d+)-slim$", DOCKERFILE, re.M)[0]))
    assert (3, 11) <= version < (3, 14)
