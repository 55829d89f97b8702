"""``python -m scoremle``: the command line."""

import sys

from scoremle.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
