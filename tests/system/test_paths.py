"""Names, folders and patterns: the files of `glob` and `os.walk`, each real file once, in a fixed order."""

import glob
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmjax.config import UserError
from lmjax.system import paths


def expand(*names: str | Path) -> paths.Listing:
    return paths.expand(map(str, names), lambda path: path.suffix == ".txt", key="data.files", endings=".txt")


def found(*names: str | Path, below: Path) -> list[str]:
    return [str(file.path.relative_to(below)) for file in expand(*names).files]


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(os.fsencode(name))


# ---- Links --------------------------------------------------------------------------------------------------------


def test_links_are_followed_and_each_real_file_is_read_once(tmp_path: Path) -> None:
    write(tmp_path, "d/b/part.txt", "d/z.txt", "elsewhere/x.txt", "elsewhere/deep/y.txt")
    d = tmp_path / "d"
    (d / "a").symlink_to(tmp_path / "elsewhere")
    (d / "a.txt").symlink_to("z.txt")
    (d / "b/up").symlink_to("..")
    (tmp_path / "elsewhere/back").symlink_to(d)
    expected = ["a/deep/y.txt", "a/x.txt", "a.txt", "b/part.txt"]
    assert found(d, below=d) == expected
    assert found(f"{d}/**/*.txt", below=d) == expected
    assert found(f"{d}/**", below=d) == expected
    assert sorted(found(d / "z.txt", d, d, f"{d}/*.txt", below=d)) == sorted(["z.txt", *expected[:2], "b/part.txt"])
    listing = expand(d)
    assert [file.real for file in listing.files] == [os.path.realpath(file.path) for file in listing.files]
    assert [(file.size, file.mtime_ns) for file in listing.files] == [
        (file.path.stat().st_size, file.path.stat().st_mtime_ns) for file in listing.files
    ]
    assert listing.skipped == {
        paths.ENTERED: [f"{d}/a/back", f"{d}/b/up"],
        paths.REPEATED: [f"{d}/z.txt"],
    }


def test_many_loops_end_at_once(tmp_path: Path) -> None:
    """A pattern of `glob` would visit 2**40 paths."""
    write(tmp_path, "a.txt", "sub/b.txt")
    for number in range(9):
        (tmp_path / f"loop{number}").symlink_to(".")
        (tmp_path / f"sub/up{number}").symlink_to("..")
    assert found(f"{tmp_path}/**/*.txt", below=tmp_path) == ["a.txt", "sub/b.txt"]
    assert found(f"{tmp_path}/**/sub/**/*.txt", below=tmp_path) == ["sub/b.txt", "sub/up0/a.txt"]  # as in `glob`
    assert found(tmp_path, below=tmp_path) == ["a.txt", "sub/b.txt"]


def test_links_without_a_target_are_named(tmp_path: Path) -> None:
    write(tmp_path, "a.txt")
    (tmp_path / "gone.txt").symlink_to("nowhere.txt")
    assert expand(tmp_path).notes() == [f"left out 1 of links without a target: {tmp_path}/gone.txt"]
    assert expand(f"{tmp_path}/*.txt").notes() == [f"left out 1 of links without a target: {tmp_path}/gone.txt"]
    with pytest.raises(
        UserError, match=r"gone.txt' is a link to 'nowhere.txt', which does not exist; repair or remove the link"
    ):
        expand(tmp_path / "gone.txt")
    (tmp_path / "self.txt").symlink_to("self.txt")
    with pytest.raises(UserError, match=r"cannot read '.*self.txt': Too many levels of symbolic links"):
        expand(tmp_path / "self.txt")


# ---- Names --------------------------------------------------------------------------------------------------------


def test_names_with_the_signs_of_patterns_are_files_first(tmp_path: Path) -> None:
    write(tmp_path, "a[1].txt", "a1.txt", "run[x=1]/b.txt", "runx/c.txt", "q?.txt", "back\\slash.txt")
    assert found(tmp_path / "a[1].txt", below=tmp_path) == ["a[1].txt"]
    assert found(tmp_path / "run[x=1]", below=tmp_path) == ["run[x=1]/b.txt"]
    assert found(f"{tmp_path}/run[x=1]/*.txt", below=tmp_path) == ["run[x=1]/b.txt"]
    assert found(tmp_path / "q?.txt", below=tmp_path) == ["q?.txt"]
    assert found(f"{tmp_path}/a[0-9].txt", below=tmp_path) == ["a1.txt"]
    assert found(tmp_path / "back\\slash.txt", below=tmp_path) == ["back\\slash.txt"]


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.txt")
    write(tmp_path, name, os.fsdecode(b"d\xff/x.txt"))
    assert found(tmp_path, below=tmp_path) == [name, os.fsdecode(b"d\xff/x.txt")]
    assert found(tmp_path / name, f"{tmp_path}/caf*", below=tmp_path) == [name]


REFUSED = {
    "": "data.files has an empty name; give a path",
    "  ": "data.files has an empty name",
    "a\0b": "data.files has a name with a NUL character: 'a.x00b'",
    "s3://bucket/a.txt": "data.files: 's3://bucket/a.txt' is a remote address, .*; download it and give its path",
    "https://host/*.txt": "is a remote address",
    "gs://bucket": "is a remote address",
    "~nobody-of-this-name/a.txt": "has no home folder; give the complete path",
    "none/a.txt": "no file or folder 'none/a.txt': the folder 'none' does not exist",
    "none/*.txt": "no file matches 'none/\\*.txt'",
    "x" * 300: "data.files has a name that is too long for a file: 'x*' ...; give a shorter path",
}


@pytest.mark.parametrize("name", REFUSED, ids=lambda name: ascii(name)[:20])
def test_a_name_that_is_no_file_is_refused(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "a.txt")  # an empty name is not the present folder
    with pytest.raises(UserError, match=REFUSED[name]):
        expand(name)


def test_an_existing_name_is_not_remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "s3:/bucket/a.txt")
    assert [str(file.path) for file in expand("s3://bucket/a.txt").files] == ["s3:/bucket/a.txt"]
    assert str(paths.missing(Path("hf://owner/name"))).startswith("'hf://owner/name' is a remote address")


def test_a_missing_file_names_its_nearest_neighbour(tmp_path: Path) -> None:
    write(tmp_path, "input.txt")
    assert str(paths.missing(tmp_path / "inptu.txt")).endswith(f"did you mean '{tmp_path / 'input.txt'}'?")
    assert str(paths.missing(tmp_path / "nothing/input.txt")).endswith("does not exist")


def test_what_a_folder_leaves_out_has_a_count_and_a_reason(tmp_path: Path) -> None:
    write(tmp_path, "a.txt", ".hidden/b.txt", ".c.txt", "notes.pdf", "x/1.bin", "x/2.bin", "x/3.bin")
    os.mkfifo(tmp_path / "pipe.txt")
    listing = expand(tmp_path)
    assert [file.path.name for file in listing.files] == ["a.txt"]
    assert listing.notes() == [
        f"left out 2 of hidden files and folders: {tmp_path}/.c.txt, {tmp_path}/.hidden",
        "left out 4 of files with an unknown ending: "
        f"{tmp_path}/notes.pdf, {tmp_path}/x/1.bin, {tmp_path}/x/2.bin, ...",
        f"left out 1 of pipes, sockets and devices: {tmp_path}/pipe.txt",
    ]
    with pytest.raises(UserError, match=r"holds no file that ends in .txt .left out 3 of files with an unknown ending"):
        expand(tmp_path / "x")
    with pytest.raises(UserError, match=r"no file matches .* .left out 1 of folders .add .* to the pattern"):
        expand(f"{tmp_path}/x*")
    with pytest.raises(UserError, match=r"pipe.txt' is not a regular file"):
        expand(tmp_path / "pipe.txt")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_cannot_be_listed_is_no_empty_folder(tmp_path: Path) -> None:
    write(tmp_path, "a.txt", "locked/b.txt")
    (tmp_path / "locked").chmod(0)
    for name in (tmp_path, f"{tmp_path}/**/*.txt"):
        with pytest.raises(UserError, match=r"cannot list the folder '.*locked': Permission denied"):
            expand(name)
    (tmp_path / "locked").chmod(0o700)


# ---- The order and the authority ------------------------------------------------------------------------------------

NAMES = st.text(st.sampled_from("ab.[1]Z-"), min_size=1, max_size=4).filter(lambda name: name.strip("."))
PARTS = st.sampled_from(["*", "**", "a*", "?", "*.txt", "[ab]*", ".*", "**", "sub", "*[1]*"])


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tree=st.lists(st.tuples(st.lists(NAMES, max_size=2), NAMES), max_size=6),
    pattern=st.lists(PARTS, min_size=1, max_size=3),
)
def test_without_links_a_pattern_matches_as_glob_does(
    tmp_path_factory: pytest.TempPathFactory, tree: list[tuple[list[str], str]], pattern: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("tree")
    for folders, name in tree:
        try:
            write(folder, "/".join([*folders, name]))
        except OSError:  # a file and a folder of the same name
            continue
    text = "/".join([str(folder), *pattern])
    matches = sorted(path for path in map(Path, glob.glob(text, recursive=True)) if path.is_file())
    try:
        listing = paths.expand([text], lambda path: True, key="data.files", endings="any")
    except UserError:
        assert not matches
        return
    assert [file.path for file in listing.files] == list(dict.fromkeys(matches))
    every = sorted(item for item in folder.rglob("*") if item.is_file())
    visible = [item for item in every if not any(part.startswith(".") for part in item.relative_to(folder).parts)]
    if visible:
        listing = paths.expand([str(folder)], lambda path: True, key="data.files", endings="any")
        assert [file.path for file in listing.files] == visible
