"""Runs one stage in this process, and writes its figures."""

import dataclasses
import importlib
import os
import sys

from accelerated import annotations
from accelerated.figures import Book, Figure, reason
from accelerated.setting import Setting
from accelerated.stages import Stage


def run(stage: Stage, setting: Setting, about: dict) -> int:
  """Runs a stage; returns 0 even if it failed, since that is a figure too."""
  annotations.stand_in()
  import jax

  devices = jax.devices()
  about = about | {"device": devices[0].device_kind, "devices": len(devices)}
  book = Book(setting.to, about)

  def write(figure: Figure, **more: bool) -> None:
    if setting.small:  # Goals are for full sizes.
      figure = dataclasses.replace(figure, goal=None)
    book.write(stage.name, figure, **more)
    value = figure.note if figure.value is None else figure.value
    print(f"{stage.name}: {figure.case}: {figure.name}: {value}", flush=True)

  try:
    module = importlib.import_module(f"accelerated.{stage.module}")
    for figure in module.measure(setting, stage.argument):
      write(figure)
    peak = (devices[0].memory_stats() or {}).get("peak_bytes_in_use")
    if peak is not None:
      write(Figure("the whole stage", "peak memory, GiB", peak / 2**30))
  except (Exception, SystemExit) as error:
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    write(
      Figure("the whole stage", "failed", None, note=reason(error)), failed=True
    )
  sys.stdout.flush()
  # Threads of compilers would keep a process that is done from ending.
  os._exit(0)
