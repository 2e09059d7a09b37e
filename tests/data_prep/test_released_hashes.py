"""The table of the released files: whole, and the same as the files where they are at hand."""

import pytest

from data_prep.importing.hashes import RELEASED, is_leaky_region_file, released_name
from tmrjax.files import sha256


def test_the_table_is_whole_and_knows_the_leaky_files():
    assert len(RELEASED) == len(set(RELEASED.values())) == 73 and released_name("0") is None
    leaky = sorted(name for name, digest in RELEASED.items() if is_leaky_region_file(digest))
    assert leaky == sorted(
        f"mnre/mre_{dif}{split}_dict.pth" for dif in ("", "dif_") for split in ("train", "val", "test")
    )


@pytest.mark.data
def test_the_files_at_hand_are_those_of_the_table(data_root):
    root = data_root / "tmr-release"
    folders = {"mnre": root / "TMR-RE" / "data"}
    folders |= {name: root / "TMR-NER" / "data" / name for name in ("twitter2015", "twitter2017")}
    found = {
        f"{name}/{path.name}": sha256(path.read_bytes())
        for name, folder in folders.items()
        for path in folder.rglob("*")
        if path.is_file()
    }
    assert found == RELEASED
