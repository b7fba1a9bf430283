"""The table of what is tested: groups of rows, each group with servers of its own."""
