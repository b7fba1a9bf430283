"""The operators that blocks are made of: each in plain torch, and by whatever else computes the same.

One file an operator. `plain` is always right and what runs where nobody chose; `others` are implementations
that may be faster on some device at some sizes, of which `tuning` finds the fastest.
"""
