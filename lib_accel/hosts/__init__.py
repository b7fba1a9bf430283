"""The programs that the engine can live in."""
