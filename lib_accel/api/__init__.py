"""The HTTP interface under /accel/v1."""
