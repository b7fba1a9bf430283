"""The UNet and its blocks."""
