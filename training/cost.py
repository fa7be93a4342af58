"""What training costs: measured here in two minutes, extrapolated by stated assumptions.

    python -m training.cost --output results/training_cost.json   measure and extrapolate
    python -m training.cost --reuse                               extrapolate again, measure nothing
    python -m training.cost --readme                              write the tables of the README

The hours of a GPU are estimates: from what ``make gpu-check`` found on one (``--gpu-check
results/gpu_check.json``), or from an assumed rate; ``--reuse`` keeps the one in the file.
"""

import argparse
import datetime
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from training.cost_table import README, write_tables
from training.estimate import COST_FILE, Assumptions, extrapolate, measured_gpu, read_cost
from training.measure import measure
from training.metrics import commit
from universal_model_hub.errors import UniversalModelError
from universal_model_hub.files import write_json


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m training.cost", description=__doc__)
    parser.add_argument("--output", "-o", type=Path, default=COST_FILE, help="cost file")
    parser.add_argument("--steps", type=int, default=2, help="timed steps of each row")
    parser.add_argument("--threads", type=int, help="1 on a machine that others use (all cores)")
    rate = parser.add_mutually_exclusive_group()
    rate.add_argument("--gpu-tflops", type=float, help="effective rate to assume")
    rate.add_argument("--gpu-check", type=Path, help="take the rate that gpu-check measured")
    parser.add_argument("--reuse", action="store_true", help="keep the file's measurements")
    parser.add_argument("--readme", action="store_true", help="write the README's tables, and only")
    options = parser.parse_args(arguments)
    given = {"gpu_tflops": options.gpu_tflops, "gpu_source": "assumed"}
    try:
        if options.gpu_check:
            given = measured_gpu(options.gpu_check)
        elif not options.gpu_tflops:
            given = {}
        if options.readme:
            write_tables(README, read_cost(options.output))
            return 0
        if options.reuse:
            cost = read_cost(options.output)
            given = given or cost["estimates"]["assumptions"]  # as before, where none is named
        else:
            facts = {"date": datetime.date.today().isoformat(), "commit": commit()}
            cost = {**facts, "measured": measure(options.steps, options.threads, say)}
        cost["estimates"] = extrapolate(cost["measured"], Assumptions(**given))
        write_json(options.output, cost)
    except UniversalModelError as error:
        print(f"cost: error: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(cost, indent=2))
    return 0


def say(text: str) -> None:
    """Print a line of progress on stderr."""
    print(f"cost: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
