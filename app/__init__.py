"""The HTTP server: one 4-bit base model in memory, many LoRA adapters over it."""
