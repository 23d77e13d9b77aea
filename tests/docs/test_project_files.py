"""The files that a newcomer looks for beside the code."""

import tomllib

from tests import ROOT


def test_the_licence_is_the_one_that_the_package_names() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = (ROOT / "LICENSE").read_text()
    assert project["license"] == "Apache-2.0"
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text


def test_the_readme_is_short_and_its_files_exist() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 200
    for name in ("CONTRIBUTING.md", "CHANGELOG.md", "docs/quickstart.md", "docs/start/student.md"):
        assert any(name in line for line in lines)
        assert (ROOT / name).is_file()
