"""Every step's loss and gradient norm, read some steps late: which updates were skipped, which gradients stand out."""

import math
import statistics
from collections import deque

import jax

SPIKE = 10.0
MEMORY, ENOUGH = 100, 20


class UpdateMonitor:
    """Of the steps that were looked at: `skipped` updates, how many `in_a_row` at the end, and the `last_finite_step` step.

    Before there is a good one that is the step whose weights it began with.
    """

    def __init__(self, start: int = 0):
        self.skipped = 0
        self._norms: deque[float] = deque(maxlen=MEMORY)
        self.reset(start)

    def add(self, step: int, loss: jax.Array, grad_norm: jax.Array) -> None:
        """Takes note of a step, whose numbers may be under way still."""
        self._unread.append((step, loss, grad_norm))

    def reset(self, start: int) -> None:
        """With the weights of step `start`: nothing is known of them yet."""
        self.in_a_row, self.last_finite_step = 0, start
        self._unread: list[tuple[int, jax.Array, jax.Array]] = []
        self._norms.clear()

    def report_until(self, upto: int) -> list[str]:
        """What there is to say about the steps up to that one: a line for each spike and for each row of skips."""
        steps = [entry for entry in self._unread if entry[0] <= upto]
        self._unread = self._unread[len(steps) :]
        lines: list[str] = []
        skips: list[int] = []
        for step, loss, norm in jax.device_get(steps):
            if math.isfinite(loss) and math.isfinite(norm):
                lines += self._skips_told(skips)
                lines += self._spike(step, float(norm))
                skips, self.in_a_row, self.last_finite_step = [], 0, step
            else:
                skips.append(step)
                self.skipped += 1
                self.in_a_row += 1
        return lines + self._skips_told(skips)

    def _skips_told(self, skips: list[int]) -> list[str]:
        if not skips:
            return []
        which = f"step {skips[0]}" if len(skips) == 1 else f"steps {skips[0]} to {skips[-1]}"
        return [
            f"{which}: loss or gradient not finite, nothing was changed; {self.skipped} skipped so far"
        ]

    def _spike(self, step: int, norm: float) -> list[str]:
        usual = statistics.median(self._norms) if len(self._norms) >= ENOUGH else math.inf
        self._norms.append(norm)
        if norm <= SPIKE * usual:
            return []
        return [
            f"step {step}: gradient norm {norm:.3g}, {norm / usual:.0f} times the median of the last {MEMORY}"
        ]
