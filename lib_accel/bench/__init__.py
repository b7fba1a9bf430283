"""Stock diffusers against ours: cases, timing, statistics, and what they were measured on."""
