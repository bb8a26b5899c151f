"""What the server and the worker agree on. Imports neither torch nor fastapi."""
