"""The Celery worker: one fine-tuning job at a time per device."""

import logging

# At its import bitsandbytes asks for a download of further kernels, which nothing here needs.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
