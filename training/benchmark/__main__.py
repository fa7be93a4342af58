"""``python -m training.benchmark``: see ``run.py``."""

from training.benchmark.run import main

if __name__ == "__main__":
    raise SystemExit(main())
