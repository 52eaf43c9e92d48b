"""Qt: the parts every panel shares. Never imports torch; `rows`, `library` and `report` need no Qt and are tested without."""
