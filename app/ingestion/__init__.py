"""Uploaded files -> normalised datasets on the volume. Knows nothing of HTTP, models or jobs."""
