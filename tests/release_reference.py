"""The released NER arithmetic R1 to R6 written in PyTorch from the equations of DESIGN.md, for tests alone."""

import math

import torch
import transformers
from torch import nn

EXTENDED = 1024


class ReleasedNER(nn.Module):
    """Parameter names and arithmetic of the released NER model; pictures come as maps [B, 49, C]."""

    def __init__(self, bert: transformers.BertConfig, length: int, tags: int, features: int, resnet: nn.Module | None):
        super().__init__()
        size = bert.hidden_size
        self.bert = transformers.BertModel(bert)
        if resnet is not None:
            self.model_resnet50 = resnet
        self.linear_pic = nn.Linear(features, size)
        for letter in "qkv":
            for grain in ("fine", "coarse"):
                setattr(self, f"linear_{letter}_{grain}", nn.Linear(size, size))
        self.linear_extend_pic = nn.Linear(size, length * EXTENDED)
        self.combine_linear = nn.Linear(size + 2 * EXTENDED, 1000)
        self.fc = nn.Linear(1000, tags)
        self.crf = nn.Module()
        self.crf.transitions = nn.Parameter(torch.randn(tags, tags))
        self.crf.start_transitions = nn.Parameter(torch.randn(tags))
        self.crf.end_transitions = nn.Parameter(torch.randn(tags))
        self.length, self.size = length, size

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

    def forward(self, batch):
        def encode(ids, mask):
            return self.bert(batch[ids], attention_mask=batch[mask].long()).last_hidden_state

        text, phrases = encode("input_ids", "attention_mask"), encode("phrase_ids", "phrase_mask")
        parts = [text]
        for prefix in ("", "generated_"):
            weak, strong = batch[f"{prefix}scores"].unbind(1)
            image, regions = batch[f"{prefix}image_features"], batch[f"{prefix}region_features"]
            u = self.picture(text, phrases, image, regions, weak, strong)
            parts.append(torch.tanh(self.linear_extend_pic(u).reshape(-1, self.length, EXTENDED)))
        return self.fc(torch.relu(self.combine_linear(torch.cat(parts, -1))))
