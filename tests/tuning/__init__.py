"""Tests of lib_accel.tuning."""
