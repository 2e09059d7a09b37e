"""DeBERTa-v2 and -v3 under the names of Hugging Face."""

from tmrjax.convert.bert import BUFFERS, block_table
from tmrjax.convert.tables import Entry, layer_norm, linear
from tmrjax.encoders.text.deberta import DebertaConfig

_DROPPED = (r"(cls|pooler|lm_predictions|mask_predictions)\..*", *BUFFERS)
_CONVOLUTION = (2, 1, 0)  # torch.nn.Conv1d has [out, in, width]


def deberta_dropped(config: DebertaConfig) -> tuple[str, ...]:
    """Names that hold nothing for the encoder; v3's files have absolute positions that its config leaves unused."""
    unused = () if config.position_biased_input else (r"embeddings\.position_embeddings\..*",)
    return (*_DROPPED, *unused)


def deberta_table(config: DebertaConfig) -> list[Entry]:
    """Hugging Face's ``DebertaV2Model`` beside ``DebertaEncoder``."""
    tables = {"word": True, "position": config.position_biased_input, "token_type": config.type_vocab_size}
    table = [
        Entry(f"embeddings.{name}_embeddings.weight", f"params/embeddings/{name}/embedding")
        for name, is_there in tables.items()
        if is_there
    ]
    if config.embedding_width != config.hidden_size:
        table += linear("embeddings.embed_proj", "params/embeddings/projection")[:1]  # without a bias
    table += layer_norm("embeddings.LayerNorm", "params/embeddings/norm")
    table.append(Entry("encoder.rel_embeddings.weight", "params/relative_positions/embedding"))
    if config.norm_rel_ebd == "layer_norm":
        table += layer_norm("encoder.LayerNorm", "params/relative_positions/norm")
    if config.conv_kernel_size:
        table.append(Entry("encoder.conv.conv.weight", "params/convolution/convolution/kernel", _CONVOLUTION))
        table.append(Entry("encoder.conv.conv.bias", "params/convolution/convolution/bias"))
        table += layer_norm("encoder.conv.LayerNorm", "params/convolution/norm")
    projections = {"query_proj": "query", "key_proj": "key", "value_proj": "value"}
    if not config.share_att_key:
        positional = {"c2p": ("pos_key_proj", "position_key"), "p2c": ("pos_query_proj", "position_query")}
        projections |= dict(positional[term] for term in config.pos_att_type)
    for index in range(config.num_hidden_layers):
        theirs, ours = f"encoder.layer.{index}", f"params/layer_{index}"
        for name, role in projections.items():
            table += linear(f"{theirs}.attention.self.{name}", f"{ours}/attention/{role}")
        table += block_table(theirs, ours)
    return table
