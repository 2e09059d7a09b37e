"""Figure 4: test F1 with 5 to 50 per cent of the training data."""

from experiments.lib.study import Places, Study
from experiments.lib.study_rows import TMR, data_sets, has_task, training

ROWS = ("BERT-CRF", "MTB", "UMGF", "MEGA", "HVPNeT", TMR)
TASKS = {"UMGF": "ner", "MEGA": "re"}  # each stands for the older multimodal methods of its task
SHARES = (5, 10, 20, 30, 40, 50)  # per cent of train


def get_study(places: Places) -> Study:
    """A curve a method and data set; each seed draws its own posts, the same for all methods."""
    trainings = tuple(
        training(places, data, row, seed, column=f"{data.column}, {share} %", data__fraction=share / 100)
        for seed in places.seeds
        for data in data_sets(places)
        for share in SHARES
        for row in ROWS
        if has_task(row, data.task) and TASKS.get(row, data.task) == data.task
    )
    return Study(
        "Figure 4: few training posts", trainings, reference=TMR, view="curve",
        notes=("Posts are drawn without replacement. The paper's curve is a drawing; its figures are not given here.",),
    )  # fmt: skip
