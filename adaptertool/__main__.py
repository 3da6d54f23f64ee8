"""`python -m adaptertool` is the same program as `adaptertool`."""

import sys

from adaptertool.cli import main

if __name__ == "__main__":
    sys.exit(main())
