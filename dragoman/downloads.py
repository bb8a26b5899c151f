"""An answer into a file, which appears whole or not at all."""

from pathlib import Path
from typing import Any

from dragoman.calls import Call
from dragoman.partial_file import partial_file
from dragoman.transport import AsyncTransport, Transport


def save(transport: Transport, call: Call[Any], target: str | Path) -> Path:
    with transport.stream(call) as response, partial_file(Path(target)) as file:
        for chunk in response.iter_bytes():
            file.write(chunk)
    return Path(target)


async def save_async(transport: AsyncTransport, call: Call[Any], target: str | Path) -> Path:
    async with transport.stream(call) as response:
        with partial_file(Path(target)) as file:
            async for chunk in response.aiter_bytes():
                file.write(chunk)
    return Path(target)
