"""Watch the loss and gradient norm of every step for skipped updates and gradient spikes.

The values are read a few steps late, so that reading does not block the step in flight.
"""

import math
import statistics
from collections import deque

import jax

# A gradient norm above this many times the median of the last norms is a spike.
SPIKE_FACTOR = 10.0
WINDOW = 100
MIN_NORMS = 20


class UpdateMonitor:
    """Count skipped updates among the steps read so far.

    `skipped` is the number of skipped updates, with those before `start`, and `in_a_row` the number
    since the last finite step. `last_finite_step` is the last step with a finite loss and gradient,
    initially the start step.
    """

    def __init__(self, start: int = 0, skipped: int = 0):
        self.skipped = skipped
        self._norms: deque[float] = deque(maxlen=WINDOW)
        self.reset(start)

    def add(self, step: int, loss: jax.Array, grad_norm: jax.Array) -> None:
        """Queue the values of a step without waiting for them."""
        self._unread.append((step, loss, grad_norm))

    def reset(self, start: int) -> None:
        """Restart from the weights of step `start`. The total of skipped updates stays."""
        self.in_a_row = 0
        self.last_finite_step = start
        self._unread: list[tuple[int, jax.Array, jax.Array]] = []
        self._norms.clear()

    def report_until(self, last_step: int) -> list[str]:
        """Read the steps up to `last_step`. Return a line per spike and per series of skips."""
        steps = [entry for entry in self._unread if entry[0] <= last_step]
        self._unread = self._unread[len(steps) :]
        lines: list[str] = []
        skips: list[int] = []
        for step, loss, norm in jax.device_get(steps):
            if math.isfinite(loss) and math.isfinite(norm):
                lines += self._describe_skips(skips)
                lines += self._describe_spike(step, float(norm))
                skips = []
                self.in_a_row = 0
                self.last_finite_step = step
            else:
                skips.append(step)
                self.skipped += 1
                self.in_a_row += 1
        return lines + self._describe_skips(skips)

    def _describe_skips(self, skips: list[int]) -> list[str]:
        if not skips:
            return []
        steps = f"step {skips[0]}" if len(skips) == 1 else f"steps {skips[0]} to {skips[-1]}"
        total = f"{self.skipped} skipped so far"
        return [f"{steps}: non-finite loss or gradient, update skipped ({total})"]

    def _describe_spike(self, step: int, norm: float) -> list[str]:
        median = statistics.median(self._norms) if len(self._norms) >= MIN_NORMS else math.inf
        self._norms.append(norm)
        if not median or norm <= SPIKE_FACTOR * median:
            return []
        ratio = f"{norm / median:.0f} times the median of the last {WINDOW}"
        return [f"step {step}: gradient norm {norm:.3g}, {ratio}"]
