"""Where the real inputs are: a folder `shared` beside the checkout."""

from pathlib import Path

import pytest

SHARED = Path(__file__).parents[2] / "shared"
needs_shared = pytest.mark.skipif(
  not (SHARED / "data").is_dir(),
  reason="needs the real inputs in ../shared",
)
