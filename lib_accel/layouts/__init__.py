"""Where the weights of each block are in the live modules of each model family."""

from lib_accel.layouts import clip, diffusers, ldm, open_clip, sgm

ENTRIES = (*ldm.ENTRIES, *sgm.ENTRIES, *diffusers.ENTRIES, *clip.ENTRIES, *open_clip.ENTRIES)

__all__ = ["ENTRIES"]
