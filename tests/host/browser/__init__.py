"""A real browser on a real webui's page."""
