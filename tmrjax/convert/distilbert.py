"""DistilBERT under the names of Hugging Face."""

from tmrjax.convert.bert import BUFFERS
from tmrjax.convert.tables import Entry, layer_norm, linear
from tmrjax.encoders.text.distilbert import DistilBertConfig

DISTILBERT_DROPPED = (r"vocab_(transform|layer_norm|projector)\..*", *BUFFERS)
_ATTENTION = {"q_lin": "query", "k_lin": "key", "v_lin": "value", "out_lin": "output"}


def distilbert_table(config: DistilBertConfig) -> list[Entry]:
    """Hugging Face's ``DistilBertModel`` beside ``DistilBertEncoder``."""
    table = [
        Entry(f"embeddings.{name}_embeddings.weight", f"params/embeddings/{name}/embedding")
        for name in ("word", "position")
    ]
    table += layer_norm("embeddings.LayerNorm", "params/embeddings/norm")
    for index in range(config.num_hidden_layers):
        theirs, ours = f"transformer.layer.{index}", f"params/layer_{index}"
        for name, role in _ATTENTION.items():
            table += linear(f"{theirs}.attention.{name}", f"{ours}/attention/{role}")
        table += layer_norm(f"{theirs}.sa_layer_norm", f"{ours}/attention_norm")
        table += linear(f"{theirs}.ffn.lin1", f"{ours}/intermediate")
        table += linear(f"{theirs}.ffn.lin2", f"{ours}/output")
        table += layer_norm(f"{theirs}.output_layer_norm", f"{ours}/output_norm")
    return table
