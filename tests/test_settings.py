"""Every key of the table refuses what is no value of its own, in one line."""

import math

import pytest

from cpeal_jax import config as config_lib
from cpeal_jax import errors, main
from cpeal_jax.config import KEYS, ranges
from cpeal_jax.errors import InputError

START = ["main", "--config=configs/quickstart.py", "--dry_run"]


def numbers_outside(allowed, whole):
  """Just beyond each bound, far beyond it, and on a bound that is open."""
  unit = 1 if whole else max(1e-3, abs(allowed.high) * 1e-6)
  values = [allowed.low - unit, allowed.high + unit, -(2**63), 2**63, 10**30]
  if not whole:
    values += [allowed.low] * allowed.open_low
    values += [allowed.high] * allowed.open_high
  return values


def bad_values(key):
  """What a person might type for a key that is none of its values."""
  allowed, whole = key.allowed, isinstance(key.default, int)
  match allowed:
    case ranges.Number():
      words = ["", "nan", "inf", "-inf", "many", "1,5", "0x"]
      words += ["2.5", "1e20"] if whole else ["1e400"]
      return [*words, *map(str, numbers_outside(allowed, whole))]
    case ranges.YesNo():
      return ["", "nan", "maybe", "2"]
    case ranges.Choice():
      words = ["nan", "inf", "RANDOM", "none of these", "\n"]
      return words if "" in allowed.words else ["", *words]
    case ranges.Subset():
      return ["", "nan", ",", f"{allowed.words[0]},nan"]
    case ranges.BlockNumbers():
      return ["nan", "inf", "-1", "1.5", "a", "\u0661"]
    case ranges.Template():
      return ["", "nan", "a photo", "a photo of {", "a {}\nb"]
    case ranges.ValueRange():
      return ["nan", "0", "1,0", "0,0", "0,inf", "a,b", "0,1,2", ","]
    case ranges.Shares():
      words = ["nan", "1", "0.5,0.5", "0,0.5,0.5", "0.5,0.2,0.2", "a,b,c"]
      return [*words, "nan,0.5,0.5", "1.5,-0.5,0", "0.5,0.2,0.3,0", ","]
    case ranges.Budget():
      return ["", "nan", "inf", "-inf", "0", "-3", "2.5", "100%", "1e20", "two"]
    case ranges.Text():
      return ["a\x00b", "a\nb", *[""] * allowed.required]
  raise AssertionError(allowed)


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.name)
def test_nonsense_is_refused_in_one_line(key, capsys):
  for value in bad_values(key):
    code = main.main([*START, f"--config.{key.name}={value}"])
    said = capsys.readouterr().err
    assert code == errors.USAGE, (value, said)
    assert len(said.strip().splitlines()) == 1, (value, said)
    assert said.startswith("error: "), (value, said)
    assert key.name.rpartition(".")[2] in said, (value, said)


def test_both_ends_of_a_range_are_what_they_say():
  for key in KEYS:
    allowed = key.allowed
    if isinstance(allowed, ranges.Number):
      assert allowed.accepts(allowed.low) is not allowed.open_low
      assert allowed.accepts(allowed.high) is not allowed.open_high
      assert not allowed.accepts(math.nan)
    # The empty weights alone are no value: a config has to name some.
    assert allowed.accepts(key.default) or key.name == "model.weights"


def test_a_value_of_another_type_is_refused():
  for key in KEYS:
    for value in (None, [1], {"a": 1}, object()):
      with pytest.raises(InputError, match=key.name):
        config_lib.check.check_value(key, value)
    if isinstance(key.default, str):
      wrong = 3
    else:
      wrong = "3" if isinstance(key.default, bool) else True
    with pytest.raises(InputError, match="of type"):
      config_lib.check.check_value(key, wrong)


def test_settings_that_contradict_each_other():
  config = config_lib.base()
  config.model.weights = "somewhere"
  config.train.epochs = 2
  config.train.warmup_epochs = 3
  with pytest.raises(InputError, match=r"warmup_epochs=3 is more than"):
    config_lib.validate(config)


def test_a_key_that_the_table_lacks_is_refused():
  config = config_lib.base()
  config.train.learning_rte = 1.0
  with pytest.raises(InputError, match=r"Did you mean 'train.learning_rate'"):
    config_lib.validate(config)
  config = config_lib.base()
  del config.train["batch"]
  with pytest.raises(InputError, match=r"lacks the key 'train.batch'"):
    config_lib.validate(config)


def test_help_has_a_whole_phrase_for_every_key():
  lines = config_lib.help_lines()
  assert max(map(len, lines)) <= 80
  text = " ".join(" ".join(lines).split())
  for key in KEYS:
    assert f"--config.{key.name}={key.default!r}" in text
    assert f"{key.meaning[1:]}. Allowed: {key.allowed.phrase}." in text
