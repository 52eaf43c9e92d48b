"""Whether an output passes, in words: the traffic light of the panel and of the report."""

from __future__ import annotations

NEAR = 0.1  # this far below the threshold is amber


def judgement(mean_sa: float | None, accept: float) -> tuple[str, str]:
    """The mean SA score μ against a threshold.

    Returns
    -------
    state, sentence : str
        ``green``, ``amber``, ``red``, or empty where there is no μ; and ``μ = 0.62: passes (from 0.50)``.
    """
    if mean_sa is None or mean_sa != mean_sa:
        return "", "No units were mapped, so there is no mean SA score μ."
    if mean_sa >= accept:
        state, word = "green", "passes"
    elif mean_sa >= accept - NEAR - 1e-9:
        state, word = "amber", "just below, look at this output"
    else:
        state, word = "red", "fails, look at this output"
    told = [(f"{mean_sa:.{n}f}", f"{accept:.{n}f}") for n in range(2, 8)]  # never "0.50: just below (from 0.50)"
    mu, needed = next(((m, a) for m, a in told if (float(m) < float(a)) == (mean_sa < accept)), told[-1])
    return state, f"μ = {mu}: {word} (from {needed})"
