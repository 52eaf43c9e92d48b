"""What a normalised curve did, in one word."""

from __future__ import annotations

import math


def verdict(z) -> str:
    """What a feature did along the path, seen against the band |z| ≤ 1 of its reference distribution.

    Only finite steps count (a feature is NaN while the mask is empty or too small). ``first`` and ``last`` are the first and
    the last of them. The rules are tried in this order:

    1. *undefined*: fewer than two finite steps.
    2. *unmoved*: began inside, ends inside, and |last − first| < 1.
    3. *entered*: ends inside.
    4. *left*: began inside and ends outside, on whichever side.
    5. *overshot*: ends outside after having been on both sides of the band, whether or not a step fell into it.
    6. *unmoved*: |last − first| < 1.
    7. *receding*: ends farther from the band than it began. (DESIGN section 4 has no word of its own for this; calling it
       *approaching* would state the contrary of what happened.)
    8. *approaching*: ends nearer to the band than it began.

    Parameters
    ----------
    z : iterable of float
        Normalised values over the steps: 0 is the reference mean, 1 one standard deviation above.

    Returns
    -------
    str
    """
    finite = [float(value) for value in z if math.isfinite(value)]
    if len(finite) < 2:
        return "undefined"
    first, last = finite[0], finite[-1]
    if abs(last) <= 1:
        return "unmoved" if abs(first) <= 1 and abs(last - first) < 1 else "entered"
    if abs(first) <= 1:
        return "left"
    if min(finite) < -1 and max(finite) > 1:
        return "overshot"
    if abs(last - first) < 1:
        return "unmoved"
    return "receding" if abs(last) > abs(first) else "approaching"
