"""Operations as Triton kernels, each beside the plain torch that it equals. No block calls them yet.

One file an operation: `reference` is plain torch, `why_not` says why the kernel cannot take some inputs,
`launch` runs it, `TOLERANCES` is how far it may be from the exact result, and the function named after the
file takes the kernel where it can and the reference elsewhere. `programs/` holds what Triton compiles, and is
imported at a launch alone: this room costs nothing where Triton is absent. `python -m lib_accel.kernels`
compiles all of it without a GPU and prints registers, spills and shared memory.
"""
