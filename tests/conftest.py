"Fixtures every test file may use."
import os
from pathlib import Path
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

@pytest.fixture(scope="session")
def shared():
    "The reference material beside the checkout (golden numbers, real EEG); tests that need it skip where it is absent."
    folder = Path(os.environ.get("NECOMIMI_SHARED", Path(__file__).parents[2]/"shared"))
    if not folder.is_dir(): pytest.skip(f"no reference material at {folder} (set NECOMIMI_SHARED)")
    return folder
