"""A canary: the share of an adapter's requests that each of its versions answers."""

import math
import random
from collections.abc import Mapping

from pydantic import BaseModel

from core.errors import InvalidError

_TOLERANCE = 1e-6


class Traffic(BaseModel):
    """`weights`: version -> share, summing to 1.

    `beside` is the version that was current when the weights were set: a version made current since ends them, in the
    one step that makes it current.
    """

    beside: int | None
    weights: dict[int, float]

    def draw(self) -> int:
        """A version, by chance according to its share."""
        return random.choices(list(self.weights), list(self.weights.values()))[0]  # noqa: S311


def check_weights(weights: Mapping[int, float]) -> dict[int, float]:
    """-> the weights that are not 0. Raises InvalidError `traffic_invalid`."""
    for number, weight in weights.items():
        if not 0 <= weight <= 1:  # not NaN either
            raise InvalidError(
                f"the weight of version {number} is {weight}; 0 to 1 is accepted",
                code="traffic_invalid",
            )
    total = math.fsum(weights.values())
    if abs(total - 1) > _TOLERANCE:
        raise InvalidError(f"the weights come to {total:g}, not to 1", code="traffic_invalid")
    return {number: weight for number, weight in weights.items() if weight}
