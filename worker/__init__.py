"""The Celery worker: one fine-tuning job at a time per device."""

import logging
import os

# At its import bitsandbytes asks for a download of further kernels, which nothing here needs.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

# Read once, when PyTorch is loaded. Threads that spin while they wait for each other bring training almost to a stop as
# soon as the server needs a core: 3 s for a step of 0.3 s.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
