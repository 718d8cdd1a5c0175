"""Strict tests: eight CPU devices, shapes checked, rank promotion refused."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ["HF_HUB_OFFLINE"] = "1"

import jax
import jaxtyping

jax.config.update("jax_numpy_rank_promotion", "raise")
jaxtyping.install_import_hook("cpeal_jax", "beartype.beartype")
