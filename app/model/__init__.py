"""The frozen 4-bit base model and its forward pass, for a row of tokens of any sequences and adapters."""
