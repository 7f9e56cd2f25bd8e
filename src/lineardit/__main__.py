"""`python -m lineardit`, and so `torchrun ... -m lineardit`, is the command `lineardit`."""

import sys

from lineardit.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
