"""A folder appears at once or not at all, whatever its name leads to, and nothing stays beside it."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lineardit.errors import OutputError
from lineardit.interop.durable import REPLACED, UNFINISHED, new_folder


def write(final: Path, content: str) -> None:
    with new_folder(final) as place:
        (place / "x").write_text(content)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def plain(at: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return at / "model"


def from_inside(at: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(at / "model")
    return Path(".")


def by_a_link(at: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (at / "links").mkdir()
    (at / "links" / "newest").symlink_to(at / "model")
    return at / "links" / "newest"


WAYS = [plain, from_inside, by_a_link]


@pytest.fixture(params=WAYS)
def final(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A path that leads to the folder `model`, in which there is something."""
    write(tmp_path / "model", "old")
    way: Callable[[Path, pytest.MonkeyPatch], Path] = request.param
    return way(tmp_path, monkeypatch)


def test_a_folder_is_replaced_whatever_path_leads_to_it(final: Path, tmp_path: Path) -> None:
    was_link = final.is_symlink()
    write(final, "new")
    assert names(tmp_path / "model") == ["x"] and (tmp_path / "model" / "x").read_text() == "new"
    assert not (tmp_path / "model").is_symlink() and final.is_symlink() == was_link
    assert names(tmp_path) == (["links", "model"] if was_link else ["model"])
    assert not was_link or names(tmp_path / "links") == ["newest"]


def test_what_fails_leaves_the_older_folder_and_no_rubbish(final: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(RuntimeError), new_folder(final) as place:
        (place / "x").write_text("half")
        raise RuntimeError
    assert sorted(tmp_path.rglob("*")) == before and (tmp_path / "model" / "x").read_text() == "old"


def test_what_is_killed_between_the_renames_is_put_back_by_the_next_call(
    final: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.rename

    class Killed(BaseException):
        pass

    def killing(source: Path, target: Path) -> None:
        if UNFINISHED in str(source):
            raise Killed
        rename(source, target)

    # The process that follows begins where the first did, and not in a folder that was moved under it.
    final = Path(os.path.abspath(final))
    monkeypatch.setattr(os, "rename", killing)
    with pytest.raises(Killed):
        write(final, "new")
    monkeypatch.setattr(os, "rename", rename)
    assert not (tmp_path / "model").exists()
    with pytest.raises(RuntimeError), new_folder(final):
        raise RuntimeError
    assert (tmp_path / "model" / "x").read_text() == "old"
    write(final, "new")
    assert (tmp_path / "model" / "x").read_text() == "new"
    assert not list(tmp_path.rglob(f"{REPLACED}*")) and not list(tmp_path.rglob(f"{UNFINISHED}*"))


def test_a_file_in_the_place_of_a_folder_is_replaced_as_often_as_one_likes(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("no folder")
    for content in ("one", "two"):
        write(tmp_path / "model", content)
        assert names(tmp_path) == ["model"] and (tmp_path / "model" / "x").read_text() == content


@pytest.mark.parametrize("mark", [REPLACED, UNFINISHED])
@pytest.mark.parametrize("kind", ["file", "link", "folder", "link to nothing"])
def test_whatever_an_earlier_process_left_behind_goes_and_nothing_that_it_links_to(
    tmp_path: Path, mark: str, kind: str
) -> None:
    kept, left = tmp_path / "kept", tmp_path / f"{mark}model"
    kept.mkdir()
    (kept / "thesis.tex").write_text("years of work")
    write(tmp_path / "model", "old")
    if kind == "file":
        left.write_text("left")
    elif kind == "folder":
        left.mkdir()
        (left / "y").write_text("left")
    else:
        left.symlink_to(kept if kind == "link" else tmp_path / "gone")
    write(tmp_path / "model", "new")
    assert names(tmp_path) == ["kept", "model"] and (tmp_path / "model" / "x").read_text() == "new"
    assert names(kept) == ["thesis.tex"]


def test_a_link_to_nothing_yet_gets_a_folder_to_lead_to(tmp_path: Path) -> None:
    (tmp_path / "newest").symlink_to(tmp_path / "model")
    write(tmp_path / "newest", "new")
    assert (tmp_path / "newest").is_symlink() and (tmp_path / "model" / "x").read_text() == "new"
    assert names(tmp_path) == ["model", "newest"]


def test_links_in_a_circle_and_the_root_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(OSError):
        write(tmp_path / "a", "new")
    assert names(tmp_path) == ["a", "b"]
    with pytest.raises(OutputError, match="/ is the root of all folders and cannot be replaced"):
        write(Path("/"), "new")
