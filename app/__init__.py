"""The HTTP server: one 4-bit base model in memory, many LoRA adapters over it."""

import logging

# At its import bitsandbytes asks for a download of further kernels, which nothing here needs.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
