"""Makes `python -m cpeal_jax.report` the same as `cpeal report`."""

import sys

from cpeal_jax.report.command import main

if __name__ == "__main__":
  sys.exit(main(sys.argv))
