"""Runs the stages that a data set lacks, in order: phrases, back-translation, regions, divergence scores.

    python data_prep/prepare.py DATASET                                      # what needs no model: phrases, regions
    python data_prep/prepare.py DATASET --stages=phrases,back_translate,regions,scores \
        --diffusion=DIR --estimator=WORKDIR [--parser=stanza --stanza=DIR] [--regions=owlvit --detector=DIR]

A stage whose results are all there does nothing. What a stage needs and is not given (the folder of a model) is said
before anything runs. The completeness table is printed before and after. The options of a stage beyond these are those
of its own command; where it has been run with them already, this command would ask for others, so leave it out of
--stages. Resumable; see :mod:`data_prep.stages.frame`.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a script from the repository's root
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data_prep.diffusion.folder import DTYPES
from data_prep.extract_phrases import PARSERS, extract_phrases
from data_prep.ground_regions import MODEL_TYPES, ground_regions
from data_prep.stages import command as stage_command
from data_prep.stages.frame import Selection
from tmrjax.files import DataError
from tmrjax.records import Dataset, completeness_table, read_dataset

STAGES = ("phrases", "back_translate", "regions", "scores")
DEFAULT = ("phrases", "regions")  # what needs no model


def planned(
    names: Sequence[str],
    *,
    parser: str = "pattern",
    stanza: Path | None = None,
    diffusion: Path | None = None,
    steps: int = 50,
    dtype: str = "float32",
    regions: str = "saliency",
    detector: Path | None = None,
    estimator: Path | None = None,
) -> list[tuple[str, Callable[[Path, Selection], Dataset]]]:
    """The stages to run, in order, as functions. Raises :class:`DataError` for all that they lack, at once."""
    unknown = [name for name in names if name not in STAGES]
    if unknown:
        raise ValueError(f"no stage {unknown[0]!r}; expected some of {', '.join(STAGES)}")

    def back_translate(root: Path, selection: Selection) -> Dataset:
        from data_prep import back_translate as stage  # diffusers and jax: only where they are asked for
        from data_prep.diffusion.sampler import Drawing

        return stage.back_translate(root, stage.Options(diffusion, Drawing(steps=steps), dtype=dtype), selection)

    def score(root: Path, selection: Selection) -> Dataset:
        from data_prep.score_divergence import score_divergence

        return score_divergence(root, estimator, selection=selection)

    functions: dict[str, Callable[[Path, Selection], Dataset]] = {
        "phrases": lambda root, selection: extract_phrases(root, selection, parser=parser, models=stanza),
        "back_translate": back_translate,
        "regions": lambda root, selection: ground_regions(root, selection, method=regions, model=detector),
        "scores": score,
    }
    lacking = []
    if "phrases" in names and parser == "stanza" and stanza is None:
        lacking.append("phrases with --parser=stanza: --stanza=DIR, the folder of stanza's models")
    if "back_translate" in names and diffusion is None:
        lacking.append("back_translate: --diffusion=DIR, the folder of a Stable Diffusion model")
    if "regions" in names and regions in MODEL_TYPES and detector is None:
        lacking.append(f"regions with --regions={regions}: --detector=DIR, the folder of its model")
    if "scores" in names and estimator is None:
        lacking.append("scores: --estimator=WORKDIR, where a divergence estimator was trained")
    if lacking:
        raise DataError("--stages", "; ".join(lacking), "what these stages need", "Name it, or leave the stage out.")
    return [(name, functions[name]) for name in STAGES if name in names]


def prepare(root: Path, names: Sequence[str] = DEFAULT, selection: Selection | None = None, **options) -> Dataset:
    """Runs stages on a data set; `options` are those of :func:`planned`. Raises :class:`DataError`."""
    dataset = read_dataset(root)
    for _, run in planned(names, **options):
        dataset = run(Path(root), selection or Selection())
    return dataset


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    stage_command.add_arguments(parser)
    parser.add_argument("--stages", default=",".join(DEFAULT), help=f"of {','.join(STAGES)} (default: %(default)s)")
    parser.add_argument("--parser", choices=PARSERS, default="pattern", help="of noun phrases")
    parser.add_argument("--stanza", type=Path, help="folder of stanza's models")
    parser.add_argument("--diffusion", type=Path, help="folder of a Stable Diffusion model")
    parser.add_argument("--steps", type=int, default=50, help="of its sampler (default: %(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of its computation (default: %(default)s)")
    parser.add_argument("--regions", choices=("saliency", *MODEL_TYPES), default="saliency", help="how they are found")
    parser.add_argument("--detector", type=Path, help="folder of the model that finds regions")
    parser.add_argument("--estimator", type=Path, help="workdir of a trained divergence estimator")
    flags = parser.parse_args()
    names = [name for name in flags.stages.split(",") if name]
    options = {
        name: getattr(flags, name)
        for name in ("parser", "stanza", "diffusion", "steps", "dtype", "regions", "detector", "estimator")
    }
    logging.basicConfig(level=logging.WARNING, format="prepare: %(message)s")

    def run() -> Dataset:
        selection = stage_command.selection_of(flags)
        planned(names, **options)  # what lacks is said before anything is printed or run
        before = read_dataset(flags.dataset)
        print(f"before: {completeness_table(before)}\n", flush=True)
        return prepare(flags.dataset, names, selection, **options)

    stage_command.command("prepare", [], run)


if __name__ == "__main__":
    main()
