"""A small made-up release in the form of TMR-RE/data. Its crop lists and phrases tell the label, as the real do."""

import json

import torch

RELATIONS = ("None", "/per/loc/place_of_residence", "/per/org/member_of")
CROPS = (1, 3, 4, 2, 3, 1)  # released crops by row, in turns
LABELS = (0, 1, 2, 0, 2, 0)  # of RELATIONS, in turns: none where there is no third crop
NAMES = ("Ada", "Bo", "Cy", "Dee", "Eve")  # in turns of five, so that words say nothing of the label
ROWS = {"train": 60, "val": 30, "test": 30}


def write_release(folder):
    """Writes it and returns the folder."""
    (folder / "txt").mkdir(parents=True)
    (folder / "ours_rel2id.json").write_text(json.dumps({name: number for number, name in enumerate(RELATIONS)}))
    for split, count in ROWS.items():
        lines, phrases, crops = [], {}, {}
        for row in range(count):
            name, label = NAMES[row % len(NAMES)], LABELS[row % len(LABELS)]
            entity = {"name": name, "pos": [0, 1]}, {"name": "Rome", "pos": [2, 3]}
            instance = {"token": [name, "in", "Rome", f"{split}{row}"], "h": entity[0], "t": entity[1]}
            lines.append(f"{instance | {'img_id': f'{split}{row}.jpg', 'relation': RELATIONS[label]}}\n")
            phrases[str(row)] = f"{name} Rome" + ("", " person location", " person organization")[label]
            crops[row] = [f"{row}_pred_yolo_crop_{number}.png" for number in range(CROPS[row % len(CROPS)])]
        (folder / "txt" / f"ours_{split}.txt").write_text("".join(lines), encoding="utf-8")
        (folder / "txt" / f"phrase_text_{split}.json").write_text(json.dumps(phrases))
        torch.save(crops, folder / "txt" / f"mre_{split}_dict.pth")
    return folder
