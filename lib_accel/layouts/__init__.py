"""Where the weights of each block are in the live modules of each model family."""

from lib_accel.layouts import ldm, sgm

FAMILIES = (ldm.FAMILY, sgm.FAMILY)

__all__ = ["FAMILIES"]
