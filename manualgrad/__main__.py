"""`python -m manualgrad`: the same as the command `manualgrad`."""

import sys

from manualgrad.cli.main import main


sys.exit(main())
