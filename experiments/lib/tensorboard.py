"""TensorBoard's writer without torch.

tensorboardX imports torch wherever it is installed, for tensors that nobody hands it here. That is half of the time in
which a command starts (2.4 of 4.9 seconds), so torch looks absent while it is imported.
"""

import sys

_absent = "torch" not in sys.modules
if _absent:
    sys.modules["torch"] = None  # `import torch` raises ImportError, which tensorboardX expects
try:
    from tensorboardX import SummaryWriter
finally:
    if _absent:
        del sys.modules["torch"]

__all__ = ["SummaryWriter"]
