"""The number of tokens that fit the device's memory, learnt from forward passes that did not."""

# If memory stays short, growing costs one failed pass in this many; if another process took the
# memory only for a moment, growing gives the job its speed back.
_PASSES_BEFORE_GROWING = 200


class MemoryLimit:
    """A token limit that falls when a forward pass does not fit, and slowly grows back.

    Attributes:
        limit: Maximum number of tokens of a pass; None as long as every pass has fitted.
    """

    limit: int | None = None
    _passes = 0

    def allows(self, tokens: int) -> bool:
        """Returns whether a pass of this many tokens is worth trying."""
        return self.limit is None or tokens <= self.limit

    def cap(self, budget: int) -> int:
        """Returns the token budget, reduced to the limit if it is above."""
        return budget if self.limit is None else min(budget, self.limit)

    def shrink(self, tokens: int) -> None:
        """Lowers the limit to this many tokens, because a larger pass did not fit."""
        self.limit, self._passes = tokens, 0

    def record_success(self) -> None:
        """Counts a pass that fitted; after 200 of them the limit doubles."""
        self._passes += 1
        if self.limit is not None and self._passes >= _PASSES_BEFORE_GROWING:
            self.limit, self._passes = 2 * self.limit, 0
