"""Command line flags; the webui calls `preload` before anything else is loaded.

A webui refuses to start with a flag that nobody defines, so take the flag away before this extension is
removed, or use ACCEL_OFF=1 instead.
"""

import argparse


def preload(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    parser.add_argument(
        "--accel-off",
        action="store_true",
        help="no acceleration until the next start, whatever the settings say (or ACCEL_OFF=1)",
    )
