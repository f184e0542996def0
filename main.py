"""Train, evaluate and sample discrete flow matching models: see README.md for the modes and flags."""

import sys

from dfm_jax.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
