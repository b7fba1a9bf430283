"""A stand-in for the package `open_clip` 2.20: names and signatures of its text encoder's classes."""
