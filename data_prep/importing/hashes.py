"""SHA-256 of every data file that was released with TMR (its repository at 279b3e2), by data set and file name.

A file that is not one of these may be a newer release, another group's version, or damaged: an importer says so and
goes on. One that is, under the name of another, was renamed or swapped: that is an error. The text files of
Twitter-2017 are those of UMT too.
"""

from __future__ import annotations

RELEASED = {
    "twitter2015/ner15_grounding_text_test.json": "24e046be891493e95ca3a48199c34b2eeb27f439d772459c9a5ee6e3f2b3231c",
    "twitter2015/ner15_grounding_text_train.json": "43f32de4c8bf1672bd9f0cfba5ab1b90093851cc75aabc9d4472acb9edb66686",
    "twitter2015/ner15_grounding_text_val.json": "83f2513770c6a128e3998426dbd9ab74d03722a73c16abbd19328bdd0167cd97",
    "twitter2015/ner_diff_test_weight_strong.txt": "ae7d32d92117d19ee85c8a8b648b6c1ffadf776b7065674b9c3eceec9e2828b4",
    "twitter2015/ner_diff_test_weight_weak.txt": "37fc39789eda2de484fc9582984080eefe7f373d6b2fb75b89e1d79b921974ff",
    "twitter2015/ner_diff_train_weight_strong.txt": "6aa9ec59e57948fc6705166214b2e73ec0827374797a76eeff1bfa8ca72e341e",
    "twitter2015/ner_diff_train_weight_weak.txt": "3bb6286e58bfa9e687cb1fa4256fe5a6fc41c7309c4c4cdc1497ddadfa3a79cd",
    "twitter2015/ner_diff_val_weight_strong.txt": "02d14ab31aebd500fdcdd91a40fa1f6d355795743e1e0e86f4768fbc9fb2d79c",
    "twitter2015/ner_diff_val_weight_weak.txt": "218d05fe9bb6c682e82d7176f1eea619e3b63d006ea46521274614d43e2bfe7e",
    "twitter2015/ner_test_weight_strong.txt": "692930b5f1ab4ea49f232496f8becbf1d25f2100a91b511f4f03e871957d3697",
    "twitter2015/ner_test_weight_weak.txt": "577297d6fc2c1d294c6097380310e00f13467c46beb1e8b9988140ba4b0e3a96",
    "twitter2015/ner_train_weight_strong.txt": "6b3ef5595712c73cf317cc8ac172ad86a6801a00b20f5b444c4ee06b731708a1",
    "twitter2015/ner_train_weight_weak.txt": "bdfee40e640d6c5558ff5399303b5cccfc91d95a2952c966397a339fab013d87",
    "twitter2015/ner_val_weight_strong.txt": "a3d59d7fd9a73d5295995a3384bc2c39ed6047640f4474dbb7895f3a78365021",
    "twitter2015/ner_val_weight_weak.txt": "5f9a3865fa59524b3199ffee86710d2a0aeab9afe66265350ef2d3c09aa97904",
    "twitter2015/test.txt": "a4ef7f191a456021a7e2355dfd9f8e531a85bf62c275646c7d4c741563abab40",
    "twitter2015/test_grounding_cut_dif.pth": "8ee4b8570c0c6afad23dc50549cb7dd622410df9dd28cf73221e0b9d00842456",
    "twitter2015/train.txt": "66c1336f27fe854504623248942f0c1348baa39533167e636835bf04234b05d7",
    "twitter2015/train_grounding_cut_dif.pth": "21cf21f745ff22a1340be3681be7296be6c2f836a4f75f44d3df94088dffeddb",
    "twitter2015/twitter2015_test_dict.pth": "cbbaee10d3aef8a4f3831796a77f5d1a4343290d93bc1b3cec257df77cff4c22",
    "twitter2015/twitter2015_train_dict.pth": "614afe9da5a98dd5873e42b571b371d883726ce55e4ebe33e9fe85506ce6dc15",
    "twitter2015/twitter2015_val_dict.pth": "54785d70d05cb0530f7c095c7a56a57e33af2cf20469dabe77f6c0a0117d5eae",
    "twitter2015/val.txt": "51e003ec71c202d786f53968ed901841c3e23bcec9a381c06120432cba0d56d1",
    "twitter2015/val_grounding_cut_dif.pth": "842d7b97ffedaf043fb56b926940d27f1cd9dad55a01ce7b008d59f3efd85502",
    "twitter2017/diff_ner_test_weight_strong.txt": "1fa3cd2e730fd85dc8e41b9d832524e38ed4890dd72dbff2709327455b6cd92e",
    "twitter2017/diff_ner_test_weight_weak.txt": "d77208e612bd636f14c2b5bc0e6114b3f5bb41347615bc0ef61fcaa538f8a409",
    "twitter2017/diff_ner_train_weight_strong.txt": "925502bb8d4acbcdf05bf86477cb15b83e01f93df81f06b70aea7b72c9ab7790",
    "twitter2017/diff_ner_train_weight_weak.txt": "9360ba3e0f6e3a18a2bb5311ba0c9a5bdb1d614bfb1701767642c45462030155",
    "twitter2017/diff_ner_val_weight_strong.txt": "5c71e6b9acbe3eee1f92b94043d05b7c53548c423a8f583fecb6e7a2232624bf",
    "twitter2017/diff_ner_val_weight_weak.txt": "7a4aa2f7bf5697a9d4eeb48e7b3fa2a81b2f4cc3bf80bdd9baf8836661534c1a",
    "twitter2017/ner17_grounding_text_test.json": "920578a264bede07e848363ac339a7875bbd5e3933b900b46fc35f8c838104d6",
    "twitter2017/ner17_grounding_text_train.json": "f2b6e69f59366b742b6f52f61bdd66b4c52ad3401c9ce248cc949e33b20ca8d6",
    "twitter2017/ner17_grounding_text_val.json": "8a43b884bb4fdb22f1fa2ba3ea5b78574c1e4a46336c6a3344918362a9c2fb6b",
    "twitter2017/ner_test_weight_strong.txt": "b8498ee1fdbc3ec8dfa0d04b62cc4a323f6eb4f5b28309652fc3717a9ca2c615",
    "twitter2017/ner_test_weight_weak.txt": "3d1a154abc701e8e65ffec1106f2345d7e532909150ab6af73b126b98aa75f03",
    "twitter2017/ner_train_weight_strong.txt": "4e63389ffdf2a2317b4cbbc5a59beca258daccb0045bdefadbdc5014202fb9dc",
    "twitter2017/ner_train_weight_weak.txt": "0055ed6d76e7e60f057f764b8656a8f3a4ab84307c70ccfebaf5d3b6c060b23a",
    "twitter2017/ner_val_weight_strong.txt": "49da80dc5c82488d508a4a2bd7e19df1015547ad8802753bea720d3f0db5f3d3",
    "twitter2017/ner_val_weight_weak.txt": "9b096c6ee9d4771c4378a569aacea5d56f498f7888f35ac99311fd08f9cfb624",
    "twitter2017/test.txt": "a7d9e172ae85bd3e35276eb2b01ce223321bdc92a47b234e24305d72e7a05243",
    "twitter2017/test_grounding_cut_dif.pth": "c76ee88c75c2b880b29cc5a956e1c3bb6332c18d1080100cdec6dbb73d1d874d",
    "twitter2017/train.txt": "801e149e8635b19d66b4ec1212c329be340ada501b35c5fa55455fb6f53633be",
    "twitter2017/train_grounding_cut_dif.pth": "7cb7a422d1b1d6ad3d1d3b9f16441a894b1313042c981194fa54df8360c11b40",
    "twitter2017/twitter2017_test_dict.pth": "f7c4df8479397303ab61cf94b763dd8c636a48c132d95a18c0f3b49b20291e91",
    "twitter2017/twitter2017_train_dict.pth": "2b949ae36b5c0638ef2c609e5a574efccf5707021dcd1a90dae1434382ee5eb0",
    "twitter2017/twitter2017_val_dict.pth": "47ba12763c0b22102e35531212e3ba99923e236e8696cd7074e321f579974350",
    "twitter2017/val_grounding_cut_dif.pth": "ba272ee34acee917edff919e3fb4c7752eb27a73b9629e2baaa8ae9307ec9db4",
    "twitter2017/valid.txt": "41b5db90cb32059c14c2c3ccd50845fb77f1e3d3e4f7d0c210a61bc507d8a73e",
    "mnre/ours_rel2id.json": "f09c6c2773fd9078e1b46dd632cba2e0d4b0448d9695d00297e72d4e1f50fd15",
    "mnre/dif_test_weight_strong.txt": "bc26785202f25368506a7efd73669864f87d960a35c036e6af7bafc84d30b7cf",
    "mnre/dif_test_weight_weak.txt": "1b4b3d18d257fe01f7b4d28479b835f823f6da627e4841a80e5ce1bcadf2a491",
    "mnre/dif_train_weight_strong.txt": "6f0ddbd1aa2bf8de4675c21fcae125a4493adfbdd0fb4817885dd03487db573e",
    "mnre/dif_train_weight_weak.txt": "f95793315cc37ba790dfb4808f4ff2739bd6e169d43935613feecd8857ab512a",
    "mnre/dif_val_weight_strong.txt": "054b4cb486eb1b696b16b974c3ca056777ad6ef52fe424cf8498ecdd71dce6c9",
    "mnre/dif_val_weight_weak.txt": "4221f37106ff25409027e413721177ef27a11e5aee2d7faa5cbfa41cc2d9922c",
    "mnre/mre_dif_test_dict.pth": "7d42d932617674466062f2c884eb66f05c2f4b7cfbf1be9f0832df5c553e32f2",
    "mnre/mre_dif_train_dict.pth": "1c7e11923a3fc67c10b65f4a2d860c8d7cf5b080c34f9b04d8064daf45a93881",
    "mnre/mre_dif_val_dict.pth": "bfc3eda9d1583c25e87dc350f8432f315175bdbd41825ff271e6a1035f5db0cd",
    "mnre/mre_test_dict.pth": "162e79d40d0dc2f5e08f9d534c5cf31a795c01b59253ae54e58abfe722d57e68",
    "mnre/mre_train_dict.pth": "1acf22e6db37929daf62038d1bb9320e7fcdce5f4984c0797bedbc33c006d91e",
    "mnre/mre_val_dict.pth": "672e883d0fe090a33caeb77ddfcc384d6bb73cec8f5dd6c3556aab5186c8ed42",
    "mnre/ours_test.txt": "f53c2f9b7739bea7d08aee4a91bfd6ec7432e1d0eeb83debf10f5d3291bc5215",
    "mnre/ours_train.txt": "1cc34438a00e2a2db73e4eba297820f926f62abd1fddc693caa13c58b62428b7",
    "mnre/ours_val.txt": "c76865179b5678167b164c21fd25ed31f9a1416da393ac93ce70f32b00352b75",
    "mnre/phrase_text_test.json": "27313e805b5cab214905b4c9569c6c2e3486ccc3fb80c2b9180d4842e6aaaddf",
    "mnre/phrase_text_train.json": "4331f79000dce3767efc264a706be13b94ee847a20745aed020b4a3bcb2d4e2c",
    "mnre/phrase_text_val.json": "e726ee6e004fba9484a087940a32fbe83af4fe35c903e5489bff23234fb4f6ad",
    "mnre/test_weight_strong.txt": "35978c4683c7349aa7c9eff3c4ab28f5b03a6ff61b0dd6ae57b5bca6c98d9d27",
    "mnre/test_weight_weak.txt": "950a2b9d25469ad9df653d4b817509f0366d29feec580601d2bd5b291fbe6ec4",
    "mnre/train_weight_strong.txt": "c149110822550d4af69ee6be98f8e730092e60aafccd250bfdd5bbb45fb3ed1e",
    "mnre/train_weight_weak.txt": "f9a13bc983b0f81c0d173199475394ac8093c3dc2e5a9b1c400842e831cbffd9",
    "mnre/val_weight_strong.txt": "c46b19949fa5283dae930cd7a064cd03e610ef962589eca250325b0c41f8fc50",
    "mnre/val_weight_weak.txt": "430ce167c9b8ef8973a7a57fb2b6b6226e081a0e6ff74152cf1a1cddd081eab4",
}

_NAMES = {digest: name for name, digest in RELEASED.items()}


def released_name(digest: str) -> str | None:
    """Which released file has this SHA-256, as "mnre/ours_train.txt"; None: none of them."""
    return _NAMES.get(digest)


def is_leaky_region_file(digest: str) -> bool:
    """Whether these are crops or boxes of MNRE, which were made with the labels: how many there are tells them."""
    name = released_name(digest)
    return name is not None and name.startswith("mnre/mre_") and name.endswith("_dict.pth")
