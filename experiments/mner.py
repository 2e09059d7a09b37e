"""Train TMR for entities, choose by dev F1, report test once.

python experiments/mner.py --config=experiments/configs/mner.py:demo --workdir=runs/demo/full
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
