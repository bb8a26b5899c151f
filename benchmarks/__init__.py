"""Side-by-side measurements: ours and a peer's in one run, as a ratio."""
