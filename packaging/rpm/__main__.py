"""The program, for a Python that is told to run this directory."""

import sys

from fusewatchd.cli import main

sys.exit(main())
