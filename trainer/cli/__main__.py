"""`python -m trainer.cli VERB`."""

import sys

from trainer.cli import main

sys.exit(main())
