"""`python -m lib_accel.demo.train`: trains, exports, judges and converts the embedded model."""

from __future__ import annotations

import sys

from lib_accel.demo.train.cli import main

if __name__ == "__main__":
    sys.exit(main())
