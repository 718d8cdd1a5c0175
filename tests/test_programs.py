"""Compiled programs kept between runs: whole or not at all."""

import os
import zlib

import programs


def test_whole_entries_go_to_the_store_and_come_back(tmp_path):
  store, own, other = (tmp_path / name for name in ("store", "own", "other"))
  for folder in (store, own, other):
    folder.mkdir()
  entry = zlib.compress(os.urandom(1000))
  (own / "jit_f-1-cache").write_bytes(entry)
  (own / "jit_g-2-cache").write_bytes(entry[:500])  # Killed as it wrote.
  (own / "jit_h-3-cache").touch()
  (own / "notes").write_bytes(entry)
  programs.give(own, store)
  assert [path.name for path in store.iterdir()] == ["jit_f-1-cache"]
  programs.take(store, other)
  assert (other / "jit_f-1-cache").read_bytes() == entry
  # Once more, and from the other side, nothing is new.
  programs.give(other, store)
  programs.take(store, own)
  assert (own / "jit_g-2-cache").read_bytes() == entry[:500]


def test_another_disk_is_copied_to(tmp_path, monkeypatch):
  def refuse(*_):
    raise OSError(18, "Invalid cross-device link")

  monkeypatch.setattr(os, "link", refuse)
  (tmp_path / "a").write_bytes(b"program")
  programs.link(tmp_path / "a", tmp_path / "b")
  assert (tmp_path / "b").read_bytes() == b"program"
  assert len(list(tmp_path.iterdir())) == 2


def test_the_oldest_make_room(tmp_path, monkeypatch):
  monkeypatch.setattr(programs, "LIMIT", 1000)
  for age in range(11):
    path = tmp_path / f"{age}-cache"
    path.write_bytes(bytes(100))
    os.utime(path, (2_000_000 - age, 2_000_000 - age))
  programs.make_room(tmp_path)
  assert {path.name for path in tmp_path.iterdir()} == {
    f"{age}-cache" for age in range(5)
  }
  programs.make_room(tmp_path)
  assert len(list(tmp_path.iterdir())) == 5


def test_without_a_home_that_can_be_written_there_is_a_store(
  tmp_path, monkeypatch
):
  (tmp_path / "file").touch()
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
  assert programs.find_store().is_dir()
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  store = programs.find_store()
  assert store.is_relative_to(tmp_path / "cache" / "cpeal_jax" / "tests")
  assert store == programs.find_store()
