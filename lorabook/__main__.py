"""`python -m lorabook` is the command `lorabook`."""

import sys

from .cli import main

sys.exit(main())
