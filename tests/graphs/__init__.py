"""Tests of lib_accel.graphs."""
