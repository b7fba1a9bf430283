"""What takes minutes and is asked for: a warm-up, a benchmark. One at a time, with progress and an end."""
