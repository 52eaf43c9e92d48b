"""`python -m MedXAILib` is the `medxai` command."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
