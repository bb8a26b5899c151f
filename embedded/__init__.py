"""Everything on one machine with Python only: Redis, worker and server behind `make serve`."""
