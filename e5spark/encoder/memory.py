"""How many tokens the device's memory holds at once, as far as it is known."""

# Growing again costs one failed pass in so many where the memory stays short, and gives a job its
# speed back where another process took the memory for a moment.
_PASSES_BEFORE_GROWING = 200


class MemoryLimit:
    """A limit of tokens that falls when a forward pass did not fit, and slowly grows back.

    Attributes:
        limit: Most tokens of a pass; None as long as every pass has fitted.
    """

    limit: int | None = None
    _passes = 0

    def holds(self, tokens: int) -> bool:
        """Returns whether a pass of so many tokens is worth trying."""
        return self.limit is None or tokens <= self.limit

    def within(self, budget: int) -> int:
        """Returns the part of a token budget that there is room for."""
        return budget if self.limit is None else min(budget, self.limit)

    def shrink(self, tokens: int) -> None:
        """Takes note that more than so many tokens did not fit."""
        self.limit, self._passes = tokens, 0

    def passed(self) -> None:
        """Takes note that a pass fitted; after many of them the limit doubles."""
        self._passes += 1
        if self.limit is not None and self._passes >= _PASSES_BEFORE_GROWING:
            self.limit, self._passes = 2 * self.limit, 0
