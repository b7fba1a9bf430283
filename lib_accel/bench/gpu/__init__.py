"""Full-size models on an NVIDIA GPU: ours and others against the eager forward of stock."""
