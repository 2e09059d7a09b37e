"""Table 3: the divergence estimator by its three objectives, in the domain it learned from and out of it."""

from experiments.lib.study import Places, Study, Training

MODES = {
    "cross-entropy": "cross_entropy",
    "negative sampling": "negative_sampling",
    "supervised contrast": "supervised_contrastive",
}
CORPORA = {"pairs": "mde.py:base", "demo-pairs": "mde.py:demo"}


def get_study(places: Places) -> Study:
    """Corpora of pairs that lie below --data (data_prep/build_divergence_corpus.py makes one)."""
    found = {folder: config for folder, config in CORPORA.items() if (places.data / folder / "corpus.json").exists()}
    if not found:
        raise ValueError(
            f"--data={places.data}: no corpus of pairs in it; expected one of the folders {', '.join(CORPORA)}, each "
            "with its corpus.json (data_prep/build_divergence_corpus.py, make_divergence_demo.py)"
        )
    trainings = []
    for seed in places.seeds:
        for folder, config in found.items():
            for row, mode in MODES.items():
                settings = {"data.root": str(places.data / folder), "mode": mode}
                if places.estimator_encoder and config.endswith(":base"):
                    settings["encoder.folder"] = places.estimator_encoder
                trainings.append(Training(row, folder, config, settings, seed))
    return Study(
        "Table 3: the divergence estimator", tuple(trainings), reference="supervised contrast", view="estimator",
        per_label=True,
        notes=("Pairs keep no predictions, so no paired test is made. The paper's figures are not given.",),
    )  # fmt: skip
