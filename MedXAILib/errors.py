"""What MedXAI says when it cannot do as it was asked."""


class MedXAIError(Exception):
    """A refusal or failure that a person can read.

    Parameters
    ----------
    message : str
        One sentence: what is wrong, and what to do about it.
    kind : str
        ``refused`` (bad input), ``untrusted`` (a program whose SHA-256 nobody has trusted yet), ``memory``, ``disk``,
        ``missing`` (an optional package is not installed) or ``crashed``.
    hint : str
        What to change, where that does not fit in the sentence; may be empty.
    """

    def __init__(self, message: str, kind: str = "refused", hint: str = ""):
        super().__init__(message)
        self.message = message
        self.kind = kind
        self.hint = hint


def nearest(word: str, choices) -> str:
    """`` (did you mean 'x'?)`` for the closest of ``choices`` to ``word``; empty when none is close."""
    import difflib

    match = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f" (did you mean '{match[0]}'?)" if match else ""
