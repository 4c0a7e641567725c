"""`python -m stillhouse` is the command `stillhouse`."""

import sys

from stillhouse.pipeline.cli import main

sys.exit(main())
