"""``python -m fusewatchd``."""

import sys

from fusewatchd.cli import main

sys.exit(main())
