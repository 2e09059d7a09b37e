"""Train the divergence estimator, choose by dev macro F1, report both tests once: in the domain and out of it.

python experiments/mde.py --config=experiments/configs/mde.py:demo --workdir=runs/demo/estimator
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
