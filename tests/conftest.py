"""Fixtures of the whole suite; eight virtual CPU devices, so that sharding is tested where it runs."""

import os
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
FLAGS = ["--xla_force_host_platform_device_count=8"]
if version("jaxlib").startswith("0.10."):
    # Saves a quarter of the time that tiny programs take to compile. XLA aborts at a flag that it does not know.
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
given = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = " ".join([given, *(flag for flag in FLAGS if flag.partition("=")[0] not in given)]).strip()
# What one test or worker or subprocess compiled, the others read.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).resolve().parent.parent / ".pytest_cache" / "jax")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
# Most of the suite's time is XLA's; tiny models need no fast code. JAX_DISABLE_MOST_OPTIMIZATIONS=0 has all.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"  # nothing in the suite may reach a hub

import pytest  # noqa: E402 (after the environment is set)

# submitit configures logging as it is imported. Under a test's capsys absl's handler would then close pytest's own
# stream, and with it end every later test: import it while the streams are whole.
import submitit  # noqa: E402, F401
from hypothesis import settings  # noqa: E402

settings.register_profile("tmrjax", deadline=None, derandomize=True)
settings.load_profile("tmrjax")


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder with the released annotations and pictures; see CONTRIBUTING.md."""
    root = os.environ.get("TMRJAX_DATA")
    if not root:
        pytest.skip("TMRJAX_DATA is not set: the released annotations and pictures are needed for this test")
    return Path(root).resolve()


# Whole files go to the workers (--dist loadfile) in this order; a long one at the end would leave the others idle.
LONGEST = (
    "experiments/test_mner.py",
    "experiments/test_mre.py",
    "data_prep/test_diffusion.py",
    "experiments/test_mde.py",
    "training/test_train.py",
    "data_prep/test_import_mnre.py",
    "data_prep/test_back_translate.py",
    "data_prep/test_convert_release.py",
    "prediction/test_predict.py",
    "experiments/test_predict_command.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Longest files first; within a file the order stays."""
    tests = Path(__file__).resolve().parent
    place = {tests / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))
