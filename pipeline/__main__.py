"""`python -m pipeline` is `stillhouse`."""

import sys

from pipeline.cli import main

sys.exit(main())
