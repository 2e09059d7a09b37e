"""Table 2: TMR against HVPNeT by relation, on the posts whose picture complements the text (score above 0.5)."""

from experiments.lib.study import Places, Study
from experiments.lib.study_rows import TMR, data_sets, training

ROWS = ("HVPNeT", TMR)


def get_study(places: Places) -> Study:
    """Relations only; trainings are those of Table 1."""
    sets = data_sets(places, tasks=("re",))
    trainings = tuple(training(places, data, row, seed) for seed in places.seeds for data in sets for row in ROWS)
    return Study(
        "Table 2: where the picture complements the text", trainings, reference=TMR, subset="complementary",
        per_label=True,
        notes=(
            "Posts of test whose complement score is above 0.5. The paper's figures by relation are not given here: "
            "its data leak the label (README.md).",
        ),
    )  # fmt: skip
