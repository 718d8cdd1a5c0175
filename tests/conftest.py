"""Strict tests: eight CPU devices, shapes checked, rank promotion refused."""

import os
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ["HF_HUB_OFFLINE"] = "1"
# Many tests build the same programs anew; compile each once a session.
COMPILED = tempfile.TemporaryDirectory(prefix="cpeal_jax_compiled_")
os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILED.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import jax
import jaxtyping

jax.config.update("jax_numpy_rank_promotion", "raise")
jaxtyping.install_import_hook("cpeal_jax", "beartype.beartype")
