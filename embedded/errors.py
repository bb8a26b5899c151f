"""Why the service could not be started, told to the person at the terminal."""


class StartError(Exception):
    """Says what is wrong and what to do about it; shown without a traceback."""
