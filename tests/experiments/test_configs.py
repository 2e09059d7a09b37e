"""The named configs: each holds what its docstring says, and passes the checks of its values."""

import pytest

from benchmarks import real_text
from experiments.configs import mde, mner, mre
from experiments.configs.papers import DEMOS, PAPERS, settings_of
from experiments.lib.settings import check_settings
from tmrjax.methods import find_method, known_methods, name_of


@pytest.mark.parametrize(("module", "name"), [(m, name) for m in (mner, mre, mde) for name in m.NAMES])
def test_every_named_config_is_locked_allowed_and_told_of(module, name):
    config = module.get_config(name)
    check_settings(config)
    assert config.name == name and config.is_locked and f":{name} " in module.__doc__
    with pytest.raises(ValueError, match=r"there is no M.. ?\w* config 'nmae'"):
        module.get_config("nmae")


def test_the_figures_of_the_readme_have_their_settings_in_configs(tmp_path):
    text = mner.get_config("twitter2017_text")
    assert (text.method, text.epochs, text.batch_size) == ("bert_crf", 5, 16)
    assert (text.lr_encoder, text.lr_fusion) == (5e-5, 1e-2)
    command = real_text.command(tmp_path, tmp_path, tmp_path / "run", seed=3)
    assert "--config=experiments/configs/mner.py:twitter2017_text" in command
    assert [item for item in command if "lr_" in item or "epochs" in item] == []
    for name, method in (("mnre_text", "mtb"), ("mnre_leaky", "tmr")):
        config = mre.get_config(name)
        assert (config.method, config.epochs, config.lr_encoder, config.lr_fusion) == (method, 3, 5e-5, 1e-3)
    pairs = mde.get_config("pairs")
    assert (pairs.data.picture_square, pairs.data.picture_size, pairs.steps, pairs.sizes.patch) == (True, 96, 800, 32)


@pytest.mark.parametrize("method", known_methods())
def test_every_method_has_its_settings_on_every_data_set_of_its_tasks(method):
    for task in known_methods()[method]:
        module, names = (mner, ("twitter2015", "twitter2017")) if task == "ner" else (mre, ("mnre",))
        assert name_of(find_method(method, task)) == method
        for name in (*names, "demo", "own"):
            config = module.get_config(name, method)
            check_settings(config)
            expected = settings_of(method, name) if name in names else {}
            found = {key: config[key] if "." not in key else config.data[key.partition(".")[2]] for key in expected}
            assert found == expected


def test_settings_of_papers_are_those_of_methods_and_a_set_s_own_come_last():
    assert {*PAPERS, *DEMOS} <= set(known_methods())
    assert settings_of("hvpnet", "twitter2017")["data.max_pieces"] == 128 and DEMOS and PAPERS
    assert (
        settings_of("hvpnet", "twitter2015")["data.max_pieces"] == 80 and settings_of("hvpnet", "mnre")["rates"] == ()
    )
