"""Visual grounding of phrases by zero-shot detectors (paper section 3.2): OWL-ViT and Grounding DINO of transformers.

The models are local folders as `save_pretrained` writes them; nothing is fetched. They need torch, which comes with the
extra `grounding`; without torchvision transformers falls back on its slower picture processors, which is fine here.
Every box comes with the phrase that it answers best and how surely.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from tmrjax.files import DataError, parse_json, read_bytes
from tmrjax.records.schema import Box

MODEL_TYPES = {"owlvit": "owlvit", "groundingdino": "grounding-dino"}  # ours -> the model_type of config.json
THRESHOLDS = {"owlvit": 0.1, "groundingdino": 0.25}  # the defaults of their post-processing in transformers


@dataclass(frozen=True)
class Found:
    """A box as fractions of width and height (it may reach over the edge), its phrase and its score in [0, 1].

    feature: [F] numbers that a detector has of the box; equal boxes need not have equal ones.
    """

    box: Box
    phrase: str | None = None
    score: float | None = None
    feature: Any = field(default=None, compare=False, repr=False)


class Detector:
    """A loaded zero-shot detector; call it with a picture and phrases.

    method: "owlvit" or "groundingdino". threshold: the least score of a box. Raises :class:`DataError` where torch,
    the model or a part of it is missing, or the folder holds another kind of model.
    """

    def __init__(self, folder: Path, method: str, *, threshold: float | None = None, device: str | None = None):
        expected = f"a model_type of {MODEL_TYPES[method]!r}"
        kind = parse_json(read_bytes(folder / "config.json"), str(folder / "config.json")).get("model_type")
        if kind != MODEL_TYPES[method]:
            raise DataError(
                folder / "config.json", f"the model_type {kind!r}", expected, "Correct --model or --method."
            )
        try:
            import torch
            from transformers import AutoImageProcessor, AutoModelForZeroShotObjectDetection, AutoTokenizer
        except ImportError as error:
            install = "pip install 'tmrjax[grounding]', or use --method=saliency."
            raise DataError(folder, f"no torch to run it with ({error})", "the extra 'grounding'", install) from None
        self.method = method
        self.threshold = THRESHOLDS[method] if threshold is None else threshold
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            # The processors without torchvision: the same boxes on every machine.
            self.pictures = AutoImageProcessor.from_pretrained(folder, local_files_only=True, use_fast=False)
            model = AutoModelForZeroShotObjectDetection.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, TypeError) as error:  # TypeError: a tokenizer without its vocabulary
            whole = "a whole model, as save_pretrained of model and processor writes it"
            raise DataError(folder, f"no model that loads ({error})", whole, "Copy all its files.") from error
        self.model = model.to(self.device).eval()

    def __call__(self, picture: Image.Image, phrases: Sequence[str]) -> tuple[list[Found], int]:
        """All boxes above the threshold, surest first, and how many phrases were too long to be read to their end."""
        import torch

        if not phrases:
            return [], 0
        inputs, columns, cut = (self._owl_inputs if self.method == "owlvit" else self._dino_inputs)(picture, phrases)
        with torch.inference_mode():
            outputs = self.model(**inputs)
        scores = outputs.logits[0].sigmoid().float().cpu()
        # Of every box, a score for each phrase: its best piece.
        by_phrase = torch.stack([scores[:, list(column)].amax(1) for column in columns], 1)
        best, index = by_phrase.max(1)
        boxes = outputs.pred_boxes[0].float().cpu()  # centre x, centre y, width, height
        # What the model compares with the phrases: of OWL-ViT in CLIP's space, of Grounding DINO the decoder's states.
        features = (outputs.class_embeds if self.method == "owlvit" else outputs.last_hidden_state)[0].float().cpu()
        corners = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)
        found = [
            Found(tuple(corners[row].tolist()), phrases[int(index[row])], float(best[row]), features[row].numpy())
            for row in range(len(best))
            if best[row] > self.threshold
        ]
        return sorted(found, key=lambda item: -item.score), cut

    def _owl_inputs(self, picture: Image.Image, phrases: Sequence[str]) -> tuple[Any, list[Sequence[int]], int]:
        """One query per phrase: a column of the logits each."""
        limit = self.model.config.text_config.max_position_embeddings
        cut = sum(len(ids) > limit for ids in self.tokenizer(list(phrases))["input_ids"])
        options = {"padding": "max_length", "max_length": limit, "truncation": True}
        inputs = self._inputs(self.tokenizer(list(phrases), return_tensors="pt", **options), picture)
        return inputs, [(column,) for column in range(len(phrases))], cut

    def _dino_inputs(self, picture: Image.Image, phrases: Sequence[str]) -> tuple[Any, list[Sequence[int]], int]:
        """One prompt, "first phrase. second phrase."; the columns of a phrase are those of its word pieces."""
        prompt, starts = "", []
        for phrase in phrases:
            starts.append(len(prompt))
            prompt += phrase.lower().replace(".", " ").replace("?", " ") + ". "  # both end a phrase for the model
        prompt = prompt.strip()
        limit = self.model.config.max_text_len

        def pieces(offsets: Sequence[tuple[int, int]]) -> list[list[int]]:
            columns: list[list[int]] = [[] for _ in phrases]
            for position, (start, end) in enumerate(offsets):
                if start < end and prompt[start:end] not in (".", "?"):
                    columns[sum(begin <= start for begin in starts) - 1].append(position)
            return columns

        whole = pieces(self.tokenizer(prompt, return_offsets_mapping=True)["offset_mapping"])
        text = self.tokenizer(
            prompt, return_offsets_mapping=True, truncation=True, max_length=limit, return_tensors="pt"
        )
        columns = pieces(text.pop("offset_mapping")[0].tolist())
        cut = sum(len(read) < len(there) for read, there in zip(columns, whole, strict=True))
        # A phrase without a piece that was read scores on the start of the prompt, which answers nothing.
        return self._inputs(text, picture), [column or [0] for column in columns], cut

    def _inputs(self, text: Any, picture: Image.Image) -> dict[str, Any]:
        pixels = self.pictures(picture, return_tensors="pt")
        return {**text.to(self.device), **pixels.to(self.device)}
