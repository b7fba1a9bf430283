"""What Triton compiles; imports Triton, and so is imported only where a kernel is launched or compiled.

Names in capitals are constants of a compiled kernel. All other numbers are arguments, so that a new picture
size compiles nothing, but for Triton's own variants: whether a number divides by 16, and whether it is 1.
"""
