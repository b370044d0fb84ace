"""Run the command line: `python -m nvila_core`."""

import sys

from nvila_core.cli import main

sys.exit(main())
