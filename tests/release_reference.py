"""The released arithmetic written in PyTorch from the formulas of tmrjax/methods/tmr_release.py, for tests alone."""

import math

import torch
import transformers
from torch import nn

EXTENDED = 1024


class Released(nn.Module):
    """u and u' under the released parameter names; pictures come as maps [B, 49, C]."""

    def __init__(self, bert: transformers.BertConfig, features: int, resnet: nn.Module | None):
        super().__init__()
        self.size = size = bert.hidden_size
        self.bert = transformers.BertModel(bert)
        if resnet is not None:
            self.model_resnet50 = resnet
        self.linear_pic = nn.Linear(features, size)
        for letter in "qkv":
            for grain in ("fine", "coarse"):
                setattr(self, f"linear_{letter}_{grain}", nn.Linear(size, size))

    def correlation(self, grain, visual, text):
        query, key, value = (getattr(self, f"linear_{letter}_{grain}") for letter in "qkv")
        weights = torch.softmax(query(visual) @ key(text).transpose(1, 2) / math.sqrt(self.size), -1)
        return torch.tanh(weights @ value(text)).sum(1)

    def picture(self, text, phrases, image, regions, weak, strong):
        patches = self.linear_pic(image)
        objects = self.linear_pic(regions.sum(2))
        fine = self.correlation("fine", patches, text) + patches.sum(1)
        coarse = self.correlation("coarse", objects, phrases) + objects.sum(1)
        return strong[:, None] * fine + weak[:, None] * coarse

    def encode(self, ids, mask):
        return self.bert(ids, attention_mask=mask.long()).last_hidden_state

    def pictures(self, batch, text, phrases):
        for prefix in ("", "generated_"):
            weak, strong = batch[f"{prefix}scores"].unbind(1)
            image, regions = batch[f"{prefix}image_features"], batch[f"{prefix}region_features"]
            yield self.picture(text, phrases, image, regions, weak, strong)


class ReleasedNER(Released):
    """E(u), the join and the tags on word pieces."""

    def __init__(self, bert: transformers.BertConfig, length: int, tags: int, features: int, resnet: nn.Module | None):
        super().__init__(bert, features, resnet)
        size = self.size
        self.linear_extend_pic = nn.Linear(size, length * EXTENDED)
        self.combine_linear = nn.Linear(size + 2 * EXTENDED, 1000)
        self.fc = nn.Linear(1000, tags)
        self.crf = nn.Module()
        self.crf.transitions = nn.Parameter(torch.randn(tags, tags))
        self.crf.start_transitions = nn.Parameter(torch.randn(tags))
        self.crf.end_transitions = nn.Parameter(torch.randn(tags))
        self.length = length

    def forward(self, batch):
        text = self.encode(batch["input_ids"], batch["attention_mask"])
        phrases = self.encode(batch["phrase_ids"], batch["phrase_mask"])
        extended = [
            torch.tanh(self.linear_extend_pic(u).reshape(-1, self.length, EXTENDED))
            for u in self.pictures(batch, text, phrases)
        ]
        return self.fc(torch.relu(self.combine_linear(torch.cat([text, *extended], -1))))


class ReleasedRE(nn.Module):
    """For RE: everything but the last layer stands under sentence_encoder, beside layers that nobody calls."""

    class SentenceEncoder(Released):
        def __init__(self, bert, features, resnet):
            super().__init__(bert, features, resnet)
            size = self.size
            self.linear_extend_pic = nn.Linear(size, size)
            self.linear_phrases = nn.Linear(size, 2 * size)
            self.linear_final = nn.Linear(6 * size, 2 * size)
            self.linear, self.linear_weights = nn.Linear(size, size), nn.Linear(3, 2)

    def __init__(self, bert: transformers.BertConfig, relations: int, features: int, resnet: nn.Module | None):
        super().__init__()
        self.sentence_encoder = self.SentenceEncoder(bert, features, resnet)
        self.linear = nn.Linear(2, 2)
        self.fc = nn.Linear(2 * bert.hidden_size, relations)

    @property
    def model_resnet50(self):
        return self.sentence_encoder.model_resnet50

    def forward(self, batch):
        encoder = self.sentence_encoder
        text = encoder.encode(batch["input_ids"], batch["attention_mask"])
        # The released phrase mask is all zeros: an additive mask that is the same everywhere, as one of ones.
        phrases = encoder.encode(batch["phrase_ids"], torch.zeros_like(batch["phrase_mask"]))
        extended = [torch.tanh(encoder.linear_extend_pic(u)) for u in encoder.pictures(batch, text, phrases)]
        rows = torch.arange(len(text))
        marked = [text[rows, batch[name]] for name in ("head_start", "tail_start")]
        joined = torch.cat([*marked, encoder.linear_phrases(phrases.sum(1)), *extended], -1)
        return self.fc(encoder.linear_final(joined))
