"""Bare files that PyTorch itself wrote, whole and broken, harmless and not."""

import os
from pathlib import Path

import numpy as np
import pytest
from bare_files import (
  ARCH,
  SMALL,
  golden,
  openai_named,
  random_params,
  run_digits,
  stand_in,
)
from parity import assert_parity, expected, outputs

from cpeal_jax.errors import InputError
from cpeal_jax.models import weights
from cpeal_jax.models.tensors import read_tensors

torch = pytest.importorskip(
  "torch", reason="needs PyTorch, of the extra parity"
)
GOLDEN = Path(__file__).parent / "golden"


def in_torch(own):
  return {
    name: torch.from_numpy(np.array(x, np.float32)) for name, x in own.items()
  }


@pytest.mark.parametrize("name", ["laion_vit", "openai_rn_deep"])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_training_checkpoint_agrees_with_pytorch(
  tmp_path, monkeypatch, name, legacy
):
  """In both of PyTorch's formats, with what stands around and beside it."""
  own = in_torch(golden(GOLDEN / name, monkeypatch, tmp_path))
  own["fc.weight"] = torch.ones(2, 3)
  own = {f"module.{key}": x for key, x in own.items()}
  whole = {"epoch": 7, "name": "run", "state_dict": own, "optimizer": {}}
  file = tmp_path / "epoch_7.pt"
  torch.save(whole, file, _use_new_zipfile_serialization=not legacy)
  read = weights.load_pretrained(str(file), arch=ARCH)
  want = expected(GOLDEN / name, read.config.image_size)
  assert_parity(outputs(read.config, read.params, want), want)


def test_half_precision_is_read_exactly(tmp_path):
  for dtype in (torch.float16, torch.bfloat16):
    own = {"a": torch.tensor([0.1, -3.0], dtype=dtype)}
    torch.save(own, tmp_path / "a.pt")
    got = read_tensors(tmp_path / "a.pt")["a"].astype(np.float32)
    np.testing.assert_array_equal(got, own["a"].float().numpy())


def test_a_file_that_was_cut_off(tmp_path):
  torch.save({"a": torch.ones(1000)}, tmp_path / "whole.pt")
  data = (tmp_path / "whole.pt").read_bytes()
  for size in (0, 10, len(data) // 2, len(data) - 100):
    (tmp_path / "cut.pt").write_bytes(data[:size])
    with pytest.raises(InputError, match=f"cut.pt: unreadable .*{size} bytes"):
      read_tensors(tmp_path / "cut.pt")


class Evil:
  """Would make a folder if a pickle of it were read as pickles are."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return os.mkdir, (str(self.path),)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path):
  made = tmp_path / "made"
  for inner in (Evil(made), {"a": torch.ones(2), "b": Evil(made)}):
    torch.save(inner, tmp_path / "evil.pt")
    with pytest.raises(InputError, match=r"evil\.pt holds \w+\.mkdir, which"):
      read_tensors(tmp_path / "evil.pt")
  assert not made.exists()


class Tiny(torch.nn.Module):
  def __init__(self):
    super().__init__()
    self.layer = torch.nn.Linear(2, 2)

  def forward(self, x):
    return self.layer(x)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_torchscript_is_refused_with_what_to_do(tmp_path):
  """As OpenAI published its models; what the line says to do then works."""
  torch.jit.save(torch.jit.script(Tiny()), tmp_path / "ViT-B-32.pt")
  with pytest.raises(InputError, match="is a TorchScript archive") as error:
    read_tensors(tmp_path / "ViT-B-32.pt")
  assert "torch.save(torch.jit.load(FILE).state_dict(), NEW)" in str(
    error.value
  )
  scripted = torch.jit.load(tmp_path / "ViT-B-32.pt")
  torch.save(scripted.state_dict(), tmp_path / "new.pt")
  assert {*read_tensors(tmp_path / "new.pt")} == {"layer.weight", "layer.bias"}


def test_a_whole_module_is_refused(tmp_path):
  torch.save(Tiny(), tmp_path / "module.pt")
  with pytest.raises(InputError, match=r"torch.save\(model.state_dict\(\)"):
    read_tensors(tmp_path / "module.pt")


@pytest.mark.parametrize("variant", ["anchored", "cpeal_lora", "cpeal_prompt"])
def test_a_bare_pt_runs_on_the_digits(tmp_path, monkeypatch, variant):
  stand_in(monkeypatch, SMALL)
  own = in_torch(openai_named(random_params(SMALL), SMALL))
  torch.save({f"module.{x}": y for x, y in own.items()}, tmp_path / "clip.pt")
  cache, run = str(tmp_path / "cache"), tmp_path / "run"
  rows = run_digits(tmp_path / "clip.pt", cache, run, variant)
  assert [row["labeled"] for row in rows] == [0, 10, 20]
