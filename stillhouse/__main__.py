"""`python -m stillhouse` is the command `stillhouse`."""

import sys

from stillhouse.pipeline.cli import command

sys.exit(command())
