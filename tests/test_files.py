"""Files are whole or absent."""

import os
import stat

import pytest

from tubelet.files import replacing, require


def test_target_appears_only_at_the_end_and_parents_are_made(tmp_path):
    target = tmp_path / "a" / "b.txt"
    with replacing(target) as temporary:
        temporary.write_text("new")
        assert temporary.parent == target.parent
        assert temporary.suffix == ".txt"
        assert not target.exists()
    assert target.read_text() == "new"
    assert [f.name for f in target.parent.iterdir()] == ["b.txt"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_failure_keeps_the_old_file_and_no_other(tmp_path, error):
    target = tmp_path / "b.txt"
    target.write_text("old")

    def write_half():
        with replacing(target) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        write_half()
    assert target.read_text() == "old"
    assert [f.name for f in tmp_path.iterdir()] == ["b.txt"]


def test_failed_rename_keeps_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "b.txt"
    target.write_text("old")

    def refuse(*_):
        raise OSError("no rename")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="no rename"), replacing(target) as temporary:
        temporary.write_text("new")
    assert target.read_text() == "old"
    assert [f.name for f in tmp_path.iterdir()] == ["b.txt"]


def test_mode_is_that_of_a_new_file_or_of_the_replaced_one(tmp_path):
    plain, target = tmp_path / "plain", tmp_path / "target"
    plain.touch()
    for mode in (stat.S_IMODE(plain.stat().st_mode), 0o640):
        with replacing(target) as temporary:
            temporary.unlink()
            os.close(os.open(temporary, os.O_CREAT, 0o600))
        assert stat.S_IMODE(target.stat().st_mode) == mode
        target.chmod(0o640)


def test_require() -> None:
    assert require("json").loads("[1]") == [1]
    with pytest.raises(ImportError, match=r"'no_such_package': pip install 'tubelet\[video\]'"):
        require("no_such_package.part")
    with pytest.raises(ImportError, match=r"asking needs the package 'no_such_package': pip install 'tubelet\[text\]'"):
        require("no_such_package", extra="text", use="asking")
