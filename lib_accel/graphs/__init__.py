"""Compiled code: one graph for all blocks of one structure, made beside the pictures, proved, remembered."""
