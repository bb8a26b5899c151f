"""Token ids in, token ids out, for many adapters over one base model. Knows no HTTP, no Redis, no text."""
