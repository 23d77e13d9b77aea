"""Datasets of the hub: a name can mean nothing else."""

import socket
from pathlib import Path
from typing import Any

import datasets
import pytest

from lmjax.config import UserError
from lmjax.system import hub


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    names: list[Any] = []

    def load(name: str, *args: Any, **options: Any) -> dict[str, list[dict[str, int]]]:
        names.append((name, *args))
        return {"train": [{"a": 1}, {"a": 2}]}

    monkeypatch.setattr(datasets, "load_dataset", load)
    return names


def test_a_dataset_gives_the_first_split_that_it_has(asked: list[Any]) -> None:
    table = hub.rows("owner/na-me_1.0", "subset", splits=("test", "train"))
    assert list(table) == [(f"hub:owner/na-me_1.0, train row {n}", {"a": n}) for n in (1, 2)]
    assert asked == [("owner/na-me_1.0", "subset")]
    with pytest.raises(UserError, match="cannot read the hub dataset 'name': it has no split 'test', only train"):
        next(hub.rows("name", splits=("test",)))


def test_a_hub_that_does_not_answer_is_said_before_its_client_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    """The address is one of a network for documentation, which drops or refuses; then a server on this machine."""
    monkeypatch.delenv("HF_HUB_OFFLINE")
    for name in ("https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://192.0.2.1:9")
    with pytest.raises(UserError, match=r"dataset 'a/b': 192\.0\.2\.1 is not reachable .*data\.files"):
        next(hub.rows("a/b"))
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("HF_ENDPOINT", place)
        hub.check_network("x")
        monkeypatch.setenv("HF_ENDPOINT", "http://192.0.2.1:9")
        monkeypatch.setenv("http_proxy", place)  # a proxy is what must answer
        monkeypatch.setenv("no_proxy", "")
        hub.check_network("x")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub.check_network("x")


NAMES = ["", "/etc", "..", "../x", "a/..", "a/b/c", "./a", "a/", "~", "s3://bucket", "https://host/a", "C:\\a", "a b"]


@pytest.mark.parametrize("name", [*NAMES, "a\n", "a/b\0", "é", "-a", "a..b", "hf:a"])
def test_a_name_of_other_form_is_refused_before_anything_is_asked(asked: list[Any], name: str) -> None:
    with pytest.raises(UserError, match="is not the name of a hub dataset, which is NAME or OWNER/NAME"):
        next(hub.rows(name))
    assert asked == []


def test_a_name_that_the_loader_reads_from_this_machine_is_refused(
    asked: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner/name").mkdir(parents=True)
    (tmp_path / "gone").symlink_to("nowhere")
    for name in ("owner", "owner/name", "gone"):
        with pytest.raises(UserError, match=f"the hub dataset '{name}' has the name of a folder or file here"):
            next(hub.rows(name))
    for name in ("json", "csv", "text", "parquet", "imagefolder"):  # these read the files of the present folder
        with pytest.raises(UserError, match=f"'{name}' is not a dataset of the hub but a reader of files"):
            next(hub.rows(name))
    assert asked == []
