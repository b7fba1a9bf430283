"""LoRA networks: read from a file, matched with the layers of live models, fused into their weights."""
