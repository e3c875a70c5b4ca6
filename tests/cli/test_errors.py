"""What `ns-lyra` says where the system refuses a file, a folder or the disk."""

from __future__ import annotations

import errno
import os
import resource
import sys
from pathlib import Path

import pytest

import lyra_ns
from lyra_ns.cli import main
from lyra_ns.cli.doctor import Doctor
from lyra_ns.data.atomic import write_whole
from lyra_ns.errors import error_text


def said(monkeypatch, capsys, *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["ns-lyra", *arguments])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 1
    return capsys.readouterr().err


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOSPC, errno.EROFS, errno.ENOENT, errno.EIO])
def test_errors_of_the_system_are_one_sentence(monkeypatch, capsys, number):
    def fail(self: Doctor) -> None:
        raise OSError(number, os.strerror(number), "/there/a.ply")

    monkeypatch.setattr(Doctor, "run", fail)
    line = said(monkeypatch, capsys, "doctor")
    assert line.startswith(f"ns-lyra: /there/a.ply: {os.strerror(number)}: ")
    assert line.count("\n") == 1
    assert "Errno" not in line
    monkeypatch.setenv("LYRA_NS_DEBUG", "1")
    with pytest.raises(OSError, match=r"a\.ply"):
        main.main()


def test_a_file_where_a_folder_must_be_is_named(monkeypatch, capsys, tmp_path):
    file = tmp_path / "file"
    file.write_text("kept")
    shipped = str(Path(lyra_ns.__file__).parent / "weights" / "lyra_tiny.safetensors")
    line = said(monkeypatch, capsys, "convert", shipped, "-o", str(file / "a.safetensors"))
    assert line == f"ns-lyra: {file}: File exists: give another path, since a folder is needed there\n"
    assert file.read_text() == "kept"


def test_own_sentences_and_errors_without_a_path_stay():
    own = FileNotFoundError("no checkpoint at a.ckpt: give another")
    assert error_text(own) == "no checkpoint at a.ckpt: give another"
    full = OSError(errno.ENOSPC, "No space left on device")
    assert error_text(full) == "No space left on device: free some space, then give the same command again"
    assert error_text(ValueError("expected a, found b")) == "expected a, found b"


def test_a_file_that_cannot_be_written_has_the_name_that_was_given(monkeypatch, tmp_path):
    path = tmp_path / "a.json"

    def refuse(file: Path, mode: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", os.fspath(file))

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(PermissionError) as caught:
        write_whole(path, b"")
    monkeypatch.undo()
    assert error_text(caught.value).startswith(f"{path}: Permission denied: ")
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        write_whole(tmp_path / "folder", b"")
    assert error_text(caught.value).startswith(f"{tmp_path / 'folder'}: Is a directory: ")
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]


def test_a_full_disk_is_told_with_the_file(tmp_path):
    """The system names no file when a write fails; a limit on the size of files stands for the disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="too large") as caught:
            write_whole(tmp_path / "a.bin", bytes(10_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert error_text(caught.value).startswith(f"{tmp_path / 'a.bin'}: File too large: ")
    assert not list(tmp_path.iterdir())


def test_an_interrupted_command_says_so_in_one_line(monkeypatch, capsys):
    def interrupt(self: Doctor) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Doctor, "run", interrupt)
    monkeypatch.setattr(sys, "argv", ["ns-lyra", "doctor"])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "ns-lyra: interrupted\n"
