"""Choosing and saving recipes."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from cockpit.forms.save import ChangedOnDiskError, is_read_only, save_copy, save_recipe
from cockpit.forms.shelf import HERE, OWN, SHIPPED, Shelf, copy_path
from recipes.problems import OperatorError
from recipes.shipped import shipped_recipe

SOUND = 'schema = 1\nname = "mine"\n[[stage]]\nname = "a"\nkind = "fake"\n'


@pytest.fixture(autouse=True)
def _own_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def test_shipped_own_and_local_recipes_are_found_and_other_toml_is_not(tmp_path: Path) -> None:
    here = tmp_path / "here"
    (here / "recipes").mkdir(parents=True)
    (here / "recipes" / "local.toml").write_text(SOUND)
    (here / "pyproject.toml").write_text('[project]\nname = "x"\n')
    (here / "broken.toml").write_text("schema = 1\n[[stage\n")
    own = copy_path("mine")
    save_copy(own, SOUND)
    found = {entry.path.name: entry for entry in Shelf(here).entries()}
    assert found["demo.toml"].group == SHIPPED
    assert found["mine.toml"].group == OWN
    assert found["local.toml"].group == HERE
    assert found["broken.toml"].problems
    assert "pyproject.toml" not in found


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text(SOUND)
    shelf = Shelf(tmp_path)
    assert not [entry for entry in shelf.entries() if entry.problems]
    path.write_text(SOUND + "max_steps = 0\n")
    assert [entry.path for entry in shelf.entries() if entry.problems] == [path]


def test_saving_keeps_the_mode_and_follows_links(tmp_path: Path) -> None:
    real, link = tmp_path / "real.toml", tmp_path / "link.toml"
    real.write_text("old")
    real.chmod(0o640)
    link.symlink_to(real)
    save_recipe(link, "new", "old")
    assert real.read_text() == "new"
    assert link.is_symlink()
    assert stat.S_IMODE(real.stat().st_mode) == 0o640


def test_a_file_that_changed_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text("theirs")
    with pytest.raises(ChangedOnDiskError) as caught:
        save_recipe(path, "mine", "opened")
    assert (path.read_text(), caught.value.text) == ("theirs", "theirs")
    path.unlink()
    with pytest.raises(ChangedOnDiskError):
        save_recipe(path, "mine", "opened")
    assert not path.exists()


def test_a_copy_does_not_overwrite_an_existing_file() -> None:
    first = copy_path("demo")
    save_copy(first, SOUND)
    second = copy_path("demo")
    assert second.name == "demo-2.toml"
    with pytest.raises(OperatorError):
        save_copy(first, SOUND)


def test_shipped_recipes_are_read_only() -> None:
    path = shipped_recipe("demo")
    assert path is not None
    assert is_read_only(path)
