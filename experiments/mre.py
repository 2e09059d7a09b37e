"""Train TMR for relations, choose by dev F1, report test once.

python experiments/mre.py --config=experiments/configs/mre.py:demo --workdir=runs/demo/relations
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from experiments.lib import command, experiment


def cli() -> None:
    """The command."""
    experiment.define_flags()
    command.run(experiment.main)


if __name__ == "__main__":
    cli()
