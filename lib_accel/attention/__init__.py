"""Softmax attention by back ends that torch or other packages bring, each called by its name.

One file a back end. None is chosen here: `table.fitting` says which can take a call, and whoever asks
measures them. No global of torch is set: its own way to name a kernel, `sdpa_kernel`, holds for the whole
process, in which other threads decode previews.
"""
