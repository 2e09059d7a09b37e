"""BERT, and what shares its blocks, RoBERTa and ELECTRA, under the names of Hugging Face."""

from tmrjax.convert.tables import Entry, layer_norm, linear
from tmrjax.encoders.config import TransformerConfig
from tmrjax.encoders.text.electra import ElectraConfig

# Names that hold nothing for the encoders: full matches.
BUFFERS = (r"(.*\.)?position_ids", r"(.*\.)?token_type_ids")
BERT_DROPPED = (r"cls\..*", r"pooler\..*", *BUFFERS)
ROBERTA_DROPPED = (r"lm_head\..*", r"pooler\..*", *BUFFERS)
ELECTRA_DROPPED = (r"discriminator_predictions\..*", r"generator_predictions\..*", r"generator_lm_head\..*", *BUFFERS)


def bert_table(config: TransformerConfig) -> list[Entry]:
    """Hugging Face's ``BertModel`` or ``RobertaModel`` (without its prefix and pooler) beside ours."""
    table = [
        Entry(f"embeddings.{name}_embeddings.weight", f"params/embeddings/{name}/embedding")
        for name in ("word", "position", "token_type")
    ]
    table += layer_norm("embeddings.LayerNorm", "params/embeddings/norm")
    for index in range(config.num_hidden_layers):
        theirs, ours = f"encoder.layer.{index}", f"params/layer_{index}"
        for name in ("query", "key", "value"):
            table += linear(f"{theirs}.attention.self.{name}", f"{ours}/attention/{name}")
        table += block_table(theirs, ours)
    return table


def block_table(theirs: str, ours: str) -> list[Entry]:
    """A block of BERT's or DeBERTa's without the projections into its attention."""
    table = linear(f"{theirs}.attention.output.dense", f"{ours}/attention/output")
    table += layer_norm(f"{theirs}.attention.output.LayerNorm", f"{ours}/attention_norm")
    table += linear(f"{theirs}.intermediate.dense", f"{ours}/intermediate")
    table += linear(f"{theirs}.output.dense", f"{ours}/output")
    return table + layer_norm(f"{theirs}.output.LayerNorm", f"{ours}/output_norm")


def electra_table(config: ElectraConfig) -> list[Entry]:
    """Hugging Face's ``ElectraModel`` beside ``ElectraEncoder``."""
    table = bert_table(config)
    if config.embedding_size != config.hidden_size:
        table += linear("embeddings_project", "params/embedding_projection")
    return table
