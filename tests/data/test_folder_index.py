"""The remembered list of a folder: the same as a fresh one, and never older than the folder."""

import json
import os
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metala_vision.data import ImageFolder, folder_index
from metala_vision.data.folder_index import list_images
from metala_vision.errors import InputError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two classes, one of them with a folder of its own, all of it long unchanged; and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "images"
    for name in ("cat/0.png", "cat/1.JPEG", "dog/small/2.png", "dog/3.png", "dog/notes.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(root / name, format="png")
    settle(root)
    return root


def settle(root: Path) -> None:
    """As if nothing had changed for a minute."""
    past = time.time() - 60
    for place, _, _ in os.walk(root):
        os.utime(place, (past, past))


def cached(root: Path) -> list[Path]:
    return list((root.parent / "cache" / "metala_vision" / "folders").glob("*.json"))


def test_a_link_to_what_it_lies_in(folder):
    (folder / "cat" / "again").symlink_to(folder)
    with pytest.raises(InputError, match="cat/again is a link to a folder that it lies in"):
        list_images(folder)


def names(root: Path) -> list[str]:
    _, paths, labels = list_images(root)
    assert labels.tolist() == [0 if "/cat/" in path else 1 for path in paths]
    return [os.path.relpath(path, root) for path in paths]


ALL = ["cat/0.png", "cat/1.JPEG", "dog/3.png", "dog/small/2.png"]


def test_second_listing_reads_no_folder(folder, monkeypatch):
    assert names(folder) == ALL
    assert len(cached(folder)) == 1
    monkeypatch.setattr(folder_index, "_listed", lambda _: pytest.fail("listed anew"))
    assert names(folder) == ALL


def test_listing_without_cache(folder):
    assert [os.path.relpath(path, folder) for path in list_images(folder, cache=False)[1]] == ALL
    assert not cached(folder)


@pytest.mark.parametrize("change", ["new file", "gone file", "new folder", "new class", "gone class"])
def test_every_change_is_seen(folder, change):
    names(folder)
    if change == "new file":
        (folder / "dog" / "small" / "9.png").write_bytes(b"")
        expected = [*ALL, "dog/small/9.png"]
    elif change == "gone file":
        (folder / "cat" / "0.png").unlink()
        expected = ALL[1:]
    elif change == "new folder":
        (folder / "cat" / "more").mkdir()
        (folder / "cat" / "more" / "5.png").write_bytes(b"")
        expected = [*ALL[:2], "cat/more/5.png", *ALL[2:]]
    elif change == "new class":
        (folder / "ant").mkdir()
        (folder / "ant" / "7.png").write_bytes(b"")
        assert list_images(folder)[0] == ["ant", "cat", "dog"]
        return
    else:
        shutil.rmtree(folder / "dog")
        expected = ALL[:2]
    assert names(folder) == expected


def test_folder_that_just_changed_is_not_remembered(folder):
    """Within one tick of the file system's clock a further change would not show."""
    (folder / "cat" / "8.png").write_bytes(b"")
    names(folder)
    assert not cached(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"folder": "/elsewhere", "folders": {}}', '{"folders": 3}'])
def test_unusable_cache_is_replaced(folder, content):
    names(folder)
    cached(folder)[0].write_text(content)
    assert names(folder) == ALL
    assert json.loads(cached(folder)[0].read_text())["folder"] == str(folder)


def test_cache_that_cannot_be_written_costs_nothing_but_time(folder, monkeypatch):
    (folder.parent / "cache").write_text("a file where a folder should be")
    assert names(folder) == ALL


def test_splits_are_the_same_from_cache(folder):
    for label in ("cat", "dog"):
        for i in range(10, 30):
            (folder / label / f"{i}.png").write_bytes(b"")
    settle(folder)
    first = {split: list(ImageFolder(str(folder), split).paths) for split in ("train", "val", "test")}
    assert cached(folder)
    assert {split: list(ImageFolder(str(folder), split).paths) for split in first} == first
    assert {split: list(ImageFolder(str(folder), split, cache=False).paths) for split in first} == first


def test_links_to_folders_are_followed(folder):
    elsewhere = folder.parent / "elsewhere"
    shutil.move(folder / "dog", elsewhere)
    (folder / "dog").symlink_to(elsewhere)
    assert names(folder) == ALL


def test_a_user_without_a_home(folder, monkeypatch):
    """Catches a training that cannot start in a container, for a list that is only kept to save time."""
    said = []
    monkeypatch.setattr(folder_index, "print_log", lambda text, **_: said.append(text))
    monkeypatch.delenv("XDG_CACHE_HOME")

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    folder_index._say_once.cache_clear()
    assert names(folder) == names(folder) == ALL
    (text,) = said
    assert text.startswith("lists of files are not kept: this user has no home")


def test_own_lists_are_used_whatever_the_umask(folder, monkeypatch):
    """Catches a list that is made anew at every start, with a warning, where the umask lets a group write."""
    before = os.umask(0)
    try:
        names(folder)
    finally:
        os.umask(before)
    monkeypatch.setattr(folder_index, "_listed", lambda _: pytest.fail("listed anew"))
    assert names(folder) == ALL


@pytest.mark.parametrize("owner", ["this user", "another"])
def test_a_folder_that_others_write_to(folder, monkeypatch, owner):
    """Catches a list written through a link of somebody else's, and users who share a cache folder and cannot train."""
    if owner == "another" and (not hasattr(os, "geteuid") or os.geteuid() != 0):
        pytest.skip("only root gives files away")
    said = []
    monkeypatch.setattr(folder_index, "print_log", lambda text, **_: said.append(text))
    names(folder)
    (kept,) = cached(folder)
    precious = folder.parent / "precious"
    precious.write_text("of this user")
    for name in (kept.name, f"{kept.name}.{os.getpid()}.tmp"):
        kept.with_name(name).unlink(missing_ok=True)
        kept.with_name(name).symlink_to(precious)
    if owner == "another":
        os.chown(kept.parents[1], 54321, 54321)
        expected = "belongs to user 54321, and this is user 0: chown 0 .*, or set XDG_CACHE_HOME to a folder"
    else:
        kept.parent.chmod(0o777)
        expected = "others may write to .*folders: chmod go-w"
    folder_index._say_once.cache_clear()
    assert names(folder) == names(folder) == ALL
    assert precious.read_text() == "of this user"
    (text,) = said
    assert re.match(f"lists of files are not kept: .*{expected}", text), text


def test_a_list_that_others_could_have_written(folder, monkeypatch):
    """Catches a training on files that somebody else has named."""
    said = []
    monkeypatch.setattr(folder_index, "print_log", lambda text, **_: said.append(text))
    names(folder)
    (kept,) = cached(folder)
    kept.write_text(kept.read_text().replace("3.png", "9.png"))
    assert "dog/9.png" in names(folder)
    kept.chmod(0o666)
    folder_index._say_once.cache_clear()
    assert names(folder) == ALL
    assert any("is made anew: others may write to" in text for text in said)
