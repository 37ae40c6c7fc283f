"""``python -m groupnorm``: see ``python -m groupnorm --help``."""

import sys

from groupnorm._cli import main

if __name__ == "__main__":
    sys.exit(main())
