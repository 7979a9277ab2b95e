"""A file that is written is the old one or the new one, whatever happens."""

import errno
import os
from pathlib import Path

import pytest

from coadapt._files import write_json, write_text
from tests.toy_runs import content_of


@pytest.mark.parametrize("there", [False, True], ids=["new", "replaced"])
@pytest.mark.parametrize("stop", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()], ids=repr)
def test_writing_that_stops_halfway_leaves_nothing_new(stop, there, tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    if there:
        write_text(path, "old")
    before = content_of(tmp_path)

    def write_half(self, text, **options):
        original(self, text[:2], **options)
        raise stop

    original = Path.write_text
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", write_half)
        with pytest.raises(type(stop)):
            write_text(path, "something new")
    assert content_of(tmp_path) == before
    write_text(path, "something new")
    assert content_of(tmp_path) == {"a.json": b"something new"}


def test_reader_never_sees_half_a_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json(path, {"a": 0.1})
    seen = []

    def replace(self, target):
        seen.append(path.read_text(encoding="utf-8"))
        assert self.parent == path.parent  # a rename across file systems would copy
        return original(self, target)

    original = Path.replace
    monkeypatch.setattr(Path, "replace", replace)
    write_json(path, {"a": 0.2})
    assert seen == ['{\n  "a": 0.1\n}\n']
    assert path.read_text(encoding="utf-8") == '{\n  "a": 0.2\n}\n'


def test_two_processes_do_not_share_the_temporary_file(tmp_path, monkeypatch):
    names = []
    monkeypatch.setattr(Path, "replace", lambda self, _: names.append(self.name))
    write_text(tmp_path / "a", "x")
    process = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: process + 1)
    write_text(tmp_path / "a", "x")
    assert len(set(names)) == 2
    assert all(name.startswith(".a.") for name in names)
