"""State dicts of Hugging Face, torchvision and timm: files, names, and every name accounted for."""

import json
import re

import flax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from tmrjax import convert
from tmrjax.convert import tables
from tmrjax.encoders.picture.resnet import ResNetConfig, ResNetEncoder
from tmrjax.encoders.text.bert import BertConfig, BertEncoder

BERT = BertConfig(
    vocab_size=11,
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=12,
    max_position_embeddings=5,
)
RESNET = ResNetConfig(embedding_size=6, hidden_sizes=(8, 12), depths=(2, 1))


def fabricated(table, shapes, seed=0) -> dict[str, np.ndarray]:
    """A state dict of random arrays under their names, in their shapes."""
    random = np.random.default_rng(seed)
    return {
        entry.theirs: random.uniform(0.5, 1.5, tables.source_shape(shapes[entry.ours], entry.axes)).astype(np.float32)
        for entry in table
    }


@pytest.fixture
def bert_state() -> dict[str, np.ndarray]:
    return fabricated(convert.bert_table(BERT), convert.bert_shapes(BERT))


@pytest.fixture
def resnet_state() -> dict[str, np.ndarray]:
    return fabricated(convert.resnet_table(RESNET, names="torchvision"), convert.resnet_shapes(RESNET))


def assert_same_tree(first, second) -> None:
    first, second = (flax.traverse_util.flatten_dict(tree, sep="/") for tree in (first, second))
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)


# --- names -------------------------------------------------------------------------------------------------------


def test_bert_reads_prefixes_old_names_and_knows_what_to_drop(bert_state):
    expected = convert.bert_params(bert_state, BERT)
    old = {
        "bert." + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in bert_state.items()
    }
    extras = {
        "bert.pooler.dense.weight": np.zeros((8, 8)),
        "bert.embeddings.position_ids": np.arange(5)[None],
        "bert.embeddings.token_type_ids": np.zeros((1, 5), int),
        "cls.predictions.transform.LayerNorm.gamma": np.zeros(8),
        "cls.predictions.bias": np.zeros(11),
        "cls.seq_relationship.weight": np.zeros((2, 8)),
    }
    assert_same_tree(convert.bert_params({**old, **extras}, BERT), expected)


def test_bert_transposes_the_kernels(bert_state):
    params = convert.bert_params(bert_state, BERT)
    np.testing.assert_array_equal(
        params["layer_1"]["intermediate"]["kernel"], bert_state["encoder.layer.1.intermediate.dense.weight"].T
    )
    leaves = flax.traverse_util.flatten_dict(params).values()
    assert all(leaf.dtype == np.float32 and leaf.flags.c_contiguous for leaf in leaves)


def test_every_fault_of_a_bert_is_listed_at_once(bert_state):
    del bert_state["encoder.layer.0.attention.self.key.bias"]
    bert_state["embeddings.word_embeddings.weight"] = np.zeros((12, 8), np.float32)
    bert_state["encoder.layer.1.output.dense.weight"] = np.zeros((12, 8), np.float32)
    bert_state["encoder.layer.0.output.dense.weight"] = np.zeros((8, 12), np.int8)
    bert_state["encoder.layer.2.output.dense.bias"] = np.zeros(8, np.float32)
    bert_state["classifier.weight"] = np.zeros((3, 8), np.float32)
    with pytest.raises(ValueError, match="BERT state dict: 6 of its names") as error:
        convert.bert_params(bert_state, BERT)
    for line in (
        "missing: encoder.layer.0.attention.self.key.bias (8,)",
        "misshaped: embeddings.word_embeddings.weight is (12, 8), expected (11, 8)",
        "misshaped: encoder.layer.1.output.dense.weight is (12, 8), expected (8, 12)",
        "not floating: encoder.layer.0.output.dense.weight is int8",
        "extra: encoder.layer.2.output.dense.bias (8,)",
        "extra: classifier.weight (3, 8)",
    ):
        assert line in str(error.value)


@pytest.mark.parametrize("name", ["bert.embeddings.LayerNorm.weight", "embeddings.LayerNorm.gamma"])
def test_a_name_that_stands_there_twice_is_refused(bert_state, name):
    bert_state[name] = np.zeros(8, np.float32)
    with pytest.raises(ValueError, match=r"embeddings\.LayerNorm\.weight"):
        convert.bert_params(bert_state, BERT)


class TorchvisionBottleneck(torch.nn.Module):
    """The block under torchvision's and timm's parameter names."""

    def __init__(self, size: int, inner: int, out: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = torch.nn.Conv2d(size, inner, 1, bias=False), torch.nn.BatchNorm2d(inner)
        self.conv2 = torch.nn.Conv2d(inner, inner, 3, stride, 1, bias=False)
        self.bn2 = torch.nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = torch.nn.Conv2d(inner, out, 1, bias=False), torch.nn.BatchNorm2d(out)
        self.downsample = None
        if stride != 1 or size != out:
            self.downsample = torch.nn.Sequential(
                torch.nn.Conv2d(size, out, 1, stride, bias=False), torch.nn.BatchNorm2d(out)
            )

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(torch.relu(self.bn2(self.conv2(y)))))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class TorchvisionResNet(torch.nn.Module):
    def __init__(self, config: ResNetConfig):
        super().__init__()
        size = config.embedding_size
        self.conv1 = torch.nn.Conv2d(config.num_channels, size, 7, 2, 3, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(size)
        self.stages = len(config.depths)
        for stage, (out, depth) in enumerate(zip(config.hidden_sizes, config.depths, strict=True)):
            blocks = []
            for block in range(depth):
                blocks.append(TorchvisionBottleneck(size, out // 4, out, 2 if stage and not block else 1))
                size = out
            setattr(self, f"layer{stage + 1}", torch.nn.Sequential(*blocks))
        self.fc = torch.nn.Linear(size, 10)

    def forward(self, x):
        x = torch.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for stage in range(self.stages):
            x = getattr(self, f"layer{stage + 1}")(x)
        return x


@pytest.mark.parametrize("config", [RESNET, ResNetConfig(embedding_size=8, hidden_sizes=(8, 12, 16), depths=(1, 2, 1))])
def test_torchvision_names_give_torchvisions_maps(config):
    torch.manual_seed(0)
    model = TorchvisionResNet(config).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if "bn" in name or "downsample.1" in name:
                tensor.copy_(torch.rand(tensor.shape) + 0.5)
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    pixels = np.random.default_rng(0).normal(size=(2, 40, 32, 3)).astype(np.float32)
    maps = ResNetEncoder(config).apply(convert.resnet_params(state, config), pixels, train=False).stages[-1]
    with torch.no_grad():
        expected = model(torch.tensor(pixels.transpose(0, 3, 1, 2))).numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(maps, expected, atol=1e-5 * np.abs(expected).max())


def test_hugging_faces_and_torchvisions_names_give_the_same(resnet_state):
    expected = convert.resnet_params(resnet_state, RESNET)
    tables = [convert.resnet_table(RESNET, names=names) for names in ("torchvision", "huggingface")]
    rename = {ours.theirs: theirs.theirs for ours, theirs in zip(*tables, strict=True)}
    hugging_face = {"resnet." + rename[name]: value for name, value in resnet_state.items()}
    hugging_face["classifier.1.weight"] = np.zeros((10, 12), np.float32)
    hugging_face["resnet.embedder.embedder.normalization.num_batches_tracked"] = np.array(3)
    assert_same_tree(convert.resnet_params(hugging_face, RESNET), expected)
    resnet_state |= {"fc.weight": np.zeros((10, 12)), "bn1.num_batches_tracked": np.array(3)}
    assert_same_tree(convert.resnet_params(resnet_state, RESNET), expected)


def test_every_fault_of_a_resnet_is_listed_at_once(resnet_state):
    del resnet_state["layer2.0.downsample.0.weight"], resnet_state["bn1.running_var"]
    resnet_state["conv1.weight"] = np.zeros((6, 1, 7, 7), np.float32)
    resnet_state["layer1.2.conv1.weight"] = np.zeros((2, 8, 1, 1), np.float32)
    with pytest.raises(ValueError, match="ResNet state dict: 4 of its names") as error:
        convert.resnet_params(resnet_state, RESNET)
    for line in (
        "missing: layer2.0.downsample.0.weight (12, 8, 1, 1)",
        "missing: bn1.running_var (6,)",
        "misshaped: conv1.weight is (6, 1, 7, 7), expected (6, 3, 7, 7)",
        "extra: layer1.2.conv1.weight (2, 8, 1, 1)",
    ):
        assert line in str(error.value)


def test_a_table_that_misses_a_parameter_is_our_fault():
    with pytest.raises(AssertionError, match="params/b"):
        convert.fill({"a": np.zeros(1)}, [convert.Entry("a", "params/a")], {"params/a": (1,), "params/b": (1,)})


# --- files -------------------------------------------------------------------------------------------------------


def write_folder(folder, state, config):
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config.to_dict()))


def test_a_folder_is_read_to_a_working_encoder(tmp_path, bert_state):
    write_folder(tmp_path, bert_state, BERT)
    config = BertConfig.from_dict(convert.read_config(tmp_path))
    assert config == BERT
    for path in (tmp_path, str(tmp_path), tmp_path / "model.safetensors"):
        assert_same_tree(convert.read_state_dict(path), bert_state)
    params = convert.bert_params(convert.read_state_dict(tmp_path), config)
    states, _ = BertEncoder(config).apply({"params": params}, jnp.ones((1, 3), int), jnp.ones((1, 3)), train=False)
    assert states.shape == (1, 3, 8)


def test_half_precision_becomes_float32_and_integers_stay(tmp_path):
    values = np.array([1.5, -2.25, 0.1])
    state = {"f16": values.astype(np.float16), "bf16": values.astype(ml_dtypes.bfloat16), "ids": np.arange(3)}
    save_file(state, tmp_path / "model.safetensors")
    read = convert.read_state_dict(tmp_path)
    assert {name: array.dtype for name, array in read.items()} == {"f16": "f4", "bf16": "f4", "ids": "i8"}
    for name in ("f16", "bf16"):
        np.testing.assert_array_equal(read[name], state[name].astype(np.float32))


def write_shards(folder, state):
    """Two shards and their index; returns the index."""
    names = sorted(state)
    places = {name: f"model-0000{1 + (number >= 10)}-of-00002.safetensors" for number, name in enumerate(names)}
    for shard in set(places.values()):
        save_file({name: state[name] for name in names if places[name] == shard}, folder / shard)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return index


def test_shards_are_read_as_one(tmp_path, bert_state):
    write_shards(tmp_path, bert_state)
    assert_same_tree(convert.read_state_dict(tmp_path), bert_state)


def test_a_missing_shard_is_named(tmp_path, bert_state):
    write_shards(tmp_path, bert_state)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model-00002-of-00002\.safetensors: no such shard"):
        convert.read_state_dict(tmp_path)


def test_an_index_that_disagrees_with_its_shards_is_refused(tmp_path, bert_state):
    index = write_shards(tmp_path, bert_state)
    index["weight_map"]["ghost"] = "model-00001-of-00002.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="disagree about ghost"):
        convert.read_state_dict(tmp_path)
    index["weight_map"] = {"a": "../outside.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=re.escape("'../outside.safetensors' is not a file name in the same folder")):
        convert.read_state_dict(tmp_path)


def test_a_folder_without_weights_says_what_is_there_and_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"the folder holds nothing\. .*convert_weights\.py OWNER/NAME --out"):
        convert.read_state_dict(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(FileNotFoundError) as error:
        convert.read_state_dict(tmp_path)
    for part in (str(tmp_path), "config.json, pytorch_model.bin", "data_prep/convert_weights.py FOLDER"):
        assert part in str(error.value)
    with pytest.raises(FileNotFoundError, match="no such folder or file"):
        convert.read_state_dict(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"not a \.safetensors file"):
        convert.read_state_dict(tmp_path / "pytorch_model.bin")


@pytest.mark.parametrize("keep", [0, 4, 200, -10])
def test_a_truncated_file_is_named(tmp_path, bert_state, keep):
    write_folder(tmp_path, bert_state, BERT)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model\.safetensors: damaged"):
        convert.read_state_dict(tmp_path)


def test_a_bad_config_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json: no such file"):
        convert.read_config(tmp_path)
    for content, message in (("{", "not valid JSON"), ("[]", "expected a JSON object, found list")):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            convert.read_config(tmp_path)
