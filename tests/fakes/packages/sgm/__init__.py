"""A stand-in for the package `sgm`: its module names, class names and signatures, and nothing else of it."""
