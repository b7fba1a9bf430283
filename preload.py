"""Command line flags; the webui calls `preload` before anything else is loaded.

Each flag is only an alias of a setting or of an environment variable, so that removing the extension while
a flag is still passed is the one thing that needs care: prefer the setting.
"""

import argparse


def preload(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    parser.add_argument(
        "--accel-off",
        action="store_true",
        help="start with acceleration off, as the setting Accel > Accelerate does (or ACCEL_OFF=1)",
    )
