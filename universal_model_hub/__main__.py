"""``python -m universal_model_hub``: the same as ``umh``."""

import sys

from universal_model_hub.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
