"""`python -m balancer`: the same as the `balancer` command."""

from __future__ import annotations

import sys

from balancer.cli import main

if __name__ == "__main__":
    sys.exit(main())
