"""What the server and the worker agree on. Imports neither torch nor fastapi."""

__version__ = "0.1.0"
