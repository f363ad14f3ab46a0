"Fixtures every test file may use."
import json, os, sys
from pathlib import Path
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

@pytest.fixture(autouse=True)
def figures_closed():
    "The pyplot figures a test opened are closed with it: which test files share a process differs from run to run."
    yield
    if plt := sys.modules.get("matplotlib.pyplot"): plt.close("all")

@pytest.fixture(scope="session")
def shared():
    "The reference material beside the checkout (golden numbers, real EEG); tests that need it skip where it is absent."
    folder = Path(os.environ.get("NECOMIMI_SHARED", Path(__file__).parents[2]/"shared"))
    if not folder.is_dir(): pytest.skip(f"no reference material at {folder} (set NECOMIMI_SHARED)")
    return folder

@pytest.fixture(scope="session")
def tiny_clip():
    """Writes a small random CLIP in open_clip's folder layout and gives the folder back: `tiny_clip(folder, embed_dim=1024, seed=0, **vision_cfg)`.
    A vision transformer of 3 blocks on 32 x 32 pixels, norms far from 1, a text tower with open_clip's own tokenizer (it needs no net). Load it with `load_vision(folder)`."""
    def write(folder, embed_dim=1024, seed=0, **vision_cfg):
        import open_clip, torch
        from safetensors.torch import save_file
        folder = Path(folder); folder.mkdir(parents=True, exist_ok=True)
        vision = vision_cfg if "timm_model_name" in vision_cfg else dict(image_size=32, layers=3, width=64, head_width=32, patch_size=8) | vision_cfg
        text = dict(context_length=77, vocab_size=49408, width=32, heads=2, layers=2)
        (folder/"open_clip_config.json").write_text(json.dumps(dict(model_cfg=dict(embed_dim=embed_dim, vision_cfg=vision, text_cfg=text), preprocess_cfg={})))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed); model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
        save_file(model.state_dict(), folder/"open_clip_model.safetensors")
        return folder
    return write

@pytest.fixture(scope="session")
def browser():
    from browser import a_browser
    with a_browser() as b: yield b

@pytest.fixture(scope="session")
def lab_server(browser, tmp_path_factory):
    from browser import a_lab
    with a_lab(browser, tmp_path_factory.mktemp("lab")) as l: yield l

@pytest.fixture(scope="module")
def lab(lab_server, request):
    "A running JupyterLab with a browser (tests/browser.py), in an empty folder of this test file's own."
    return lab_server.within(request.module.__name__)
