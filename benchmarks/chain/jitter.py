"""How punctual this machine is: a process that does nothing but wake up, beside the others.

python chain/jitter.py RATE SECONDS        prints the lateness of each waking in µs, as JSON
"""

from __future__ import annotations

import json
import sys
import time


def lateness(rate: float, seconds: float) -> list[float]:
    """Waking `rate` times per second on the steady clock."""
    due, late = time.monotonic(), []
    for _ in range(int(rate * seconds)):
        due += 1.0 / rate
        rest = due - time.monotonic()
        if rest > 0.0:
            time.sleep(rest)
        late.append(round(1e6 * (time.monotonic() - due), 1))
    return late


if __name__ == "__main__":
    print(json.dumps(lateness(float(sys.argv[1]), float(sys.argv[2]))))
