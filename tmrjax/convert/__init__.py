"""Weights of others into ours: state dicts of Hugging Face, torchvision, timm and the authors as tables of name pairs.

A conversion is a list of ``Entry`` (their name, our path, a transpose) and a list of their names that are dropped
knowingly. ``fill`` applies it: whatever is missing, left over or of another shape is raised, all of it in one error.
Nothing here needs torch.
"""

from tmrjax.convert.bert import bert_table
from tmrjax.convert.pictures import clip_table, picture_shapes, picture_variables, swin_table, vit_table
from tmrjax.convert.released import method_from_release
from tmrjax.convert.released.tmr import ner_from_release, re_from_release
from tmrjax.convert.resnet import resnet_params, resnet_shapes, resnet_table
from tmrjax.convert.state_dicts import INDEX, WEIGHTS, read_config, read_state_dict
from tmrjax.convert.tables import CONVOLUTION, LINEAR, Entry, fill, shapes_of, without_prefix
from tmrjax.convert.text import bert_params, bert_shapes, text_params, text_shapes
from tmrjax.convert.vilt import mde_from_release, vilt_params, vilt_shapes, vilt_table

__all__ = [
    "CONVOLUTION",
    "INDEX",
    "LINEAR",
    "WEIGHTS",
    "Entry",
    "bert_params",
    "bert_shapes",
    "bert_table",
    "clip_table",
    "fill",
    "mde_from_release",
    "method_from_release",
    "ner_from_release",
    "picture_shapes",
    "picture_variables",
    "re_from_release",
    "read_config",
    "read_state_dict",
    "resnet_params",
    "resnet_shapes",
    "resnet_table",
    "shapes_of",
    "swin_table",
    "text_params",
    "text_shapes",
    "vilt_params",
    "vilt_shapes",
    "vilt_table",
    "vit_table",
    "without_prefix",
]
