"""Builds a corpus and kills itself with SIGKILL at the n-th moment of its work: python killed_build.py ROOT OUT N."""

import itertools
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data_prep import build_divergence_corpus as build
from data_prep.corpus import pool as corpus_pool
from tests.corpus_pictures import options

root, out = Path(sys.argv[1]), Path(sys.argv[2])
moments = itertools.count(1)
corpus_pool.CHUNK = 8


def deadly(function, *, before=False):
    """The function, but before or after its n-th call, of all of them together, the process is dead."""

    def call(*args, **kwargs):
        last = next(moments) == int(sys.argv[3])
        result = None if last and before else function(*args, **kwargs)
        if last:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return call


corpus_pool.Pool._add = deadly(corpus_pool.Pool._add)
build.order_plan = deadly(build.order_plan)  # its transaction is still open
build.write_shard = deadly(build.write_shard)  # the shard is there, but the pool does not know
build._remove_pool = deadly(build._remove_pool, before=True)
build.build_corpus(options(out, root / "a", root / "b"))
