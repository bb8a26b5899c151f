"""The Celery worker: one fine-tuning job at a time per device."""
