"""`python -m llm_neo` is the command `llm-neo`."""

import sys

from llm_neo.cli import main

if __name__ == "__main__":
    sys.exit(main())
