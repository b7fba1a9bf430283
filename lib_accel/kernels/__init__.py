"""Operations as Triton kernels, each beside the plain torch that it equals. Blocks call them as operators.

One file an operation: `reference` is plain torch, `why_not` says why the kernel cannot take some inputs,
`candidates` are the tiles that their work may be cut into, `launch` runs the kernel with one of those,
`TOLERANCES` is how far it may be from the exact result, and the function named after the file takes the
kernel where it can and the reference elsewhere. Blocks get at them through blocks/operators, which offer a
kernel with each of its tiles beside plain torch. `programs/` holds what Triton compiles, and is imported at a
launch alone: this room costs nothing where Triton is absent. `python -m lib_accel.kernels` compiles all of it
without a GPU and prints registers, spills and shared memory. `tables/` has a file a common GPU, by which
order.py puts candidates in that GPU's order; `python -m lib_accel.kernels tables` writes them, by predict.py.
"""
