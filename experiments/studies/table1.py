"""Table 1: all methods, and TMR without back-translation and without divergence scores, on every data set there is."""

from experiments.lib.study import Places, Study
from experiments.lib.study_rows import METHODS, PUBLISHED, TMR, data_sets, has_task, notes_of, training


def get_study(places: Places) -> Study:
    """Every row on every data set whose task it does."""
    sets = data_sets(places)
    trainings = tuple(
        training(places, data, row, seed)
        for seed in places.seeds for row in METHODS for data in sets if has_task(row, data.task)
    )  # fmt: skip
    return Study(
        "Table 1: all methods", trainings, reference=TMR, per_label=True, published=PUBLISHED,
        notes=(*notes_of(sets, PUBLISHED), "TMR's ablations: the paper's figures of them are not given here."),
    )  # fmt: skip
