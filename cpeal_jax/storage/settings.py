"""Compares the settings of a start with those of the one before."""

import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Any


def differences(
  stored: Mapping, given: Mapping, run_keys: Collection[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
  """Returns the differences of flat settings: the allowed and the refused.

  Each is a line such as "key: workdir has X, you gave Y".
  """
  allowed, refused = [], []
  for key in sorted(stored.keys() | given.keys()):
    had, got = (
      json.dumps(side[key]) if key in side else "nothing"
      for side in (stored, given)
    )
    if had == got:
      continue
    line = f"{key}: workdir has {had}, you gave {got}"
    grows = key == "rounds" and _is_less(stored.get(key), given.get(key))
    if grows or _is_run_key(key, run_keys):
      allowed.append(line)
    else:
      refused.append(line + (" (may only grow)" if key == "rounds" else ""))
  return tuple(allowed), tuple(refused)


def config_hash(config: Mapping[str, Any], run_keys: Collection[str]) -> str:
  """Returns the sha256 of the settings that decide results, except `rounds`."""
  result = {
    key: value
    for key, value in flat(config).items()
    if key != "rounds" and not _is_run_key(key, run_keys)
  }
  return hashlib.sha256(json.dumps(result, sort_keys=True).encode()).hexdigest()


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Returns the values of nested settings by their dotted names."""
  out = {}
  for key, value in config.items():
    if isinstance(value, Mapping) and value:
      out |= flat(value, f"{prefix}{key}.")
    else:
      out[prefix + key] = value
  return out


def _is_run_key(key: str, run_keys: Collection[str]) -> bool:
  """Returns whether `run_keys` names a setting or a section around it."""
  parts = key.split(".")
  return any(".".join(parts[: i + 1]) in run_keys for i in range(len(parts)))


def _is_less(old: Any, new: Any) -> bool:
  """Returns whether both are whole numbers and the second is greater."""
  return type(old) is int and type(new) is int and old < new
