"""The command databackup, as `python -m databackup`."""

from __future__ import annotations

import sys

from databackup.cli import main

sys.exit(main())
