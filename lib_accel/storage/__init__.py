"""Weights of linear layers in eight bits a number; what was loaded waits in the CPU's memory."""
