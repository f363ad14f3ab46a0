"Picture and text encoders: the shipped one does what it says, others load through the same call, bad input is named."
import numpy as np
import pytest
import torch
from PIL import Image
from necomimi.data import NecomimiError
from necomimi.mini import mini_concepts, mini_pictures, pixels, random_scene, render
from necomimi.vision import Embeddings, VisionEncoder, as_pil, load_embeddings, load_vision, mini_folder, save_embeddings

@pytest.fixture(scope="module")
def eye(): return load_vision("mini")

@pytest.fixture(scope="module")
def test_set(eye):
    t = mini_pictures("test"); return t, eye.embed_pictures(pixels(t), progress=False)

def test_concepts_drawn_anew_are_known_again(eye, test_set):
    t, shown = test_set
    anew = np.stack([np.asarray(render(c, random_scene(np.random.default_rng([4321, i])))) for i, c in enumerate(t.code)])
    assert ((eye.embed_pictures(anew, progress=False).normalized() @ shown.normalized().T).argmax(1) == np.arange(200)).mean() >= .95

def test_kinds_are_linear_on_held_out_concepts(eye, test_set):
    from sklearn.linear_model import LogisticRegression
    t, shown = test_set; train = mini_pictures("training", n_exemplars=1)
    assert not set(train.concept) & set(t.concept)
    probe = LogisticRegression(max_iter=1000).fit(eye.embed_pictures(pixels(train), progress=False).vectors, train.category)
    assert probe.score(shown.vectors, t.category) >= .85

def test_texts_name_pictures(eye, test_set):
    t, shown = test_set; words = [c.replace("_", " ").replace("-", " ") for c in t.concept]
    assert ((shown.normalized() @ eye.embed_texts(words).normalized().T).argmax(1) == np.arange(200)).mean() >= .9

def test_shipped_weights_are_small_and_hold_no_pickle():
    files = [f for f in mini_folder().rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) <= 30e6
    assert {f.suffix for f in files} <= {".safetensors", ".json", ".gz", ".txt", ".md"}

def test_the_cut_vocabulary_cuts_texts_as_clip_does(eye):
    import open_clip
    full = open_clip.SimpleTokenizer(context_length=16); decode = lambda tok, ids: [tok.decoder[i] for i in ids.tolist() if i]
    for c in mini_concepts().concept.iloc[::9]:
        text = f"a picture of {c.replace('_', ' ').replace('-', ' ')}"
        assert decode(eye.tokenizer, eye.tokenizer([text])[0]) == decode(full, full([text])[0])

def test_paths_pil_and_arrays_give_the_same(eye, tmp_path):
    x = pixels(mini_pictures("test").iloc[:3]); paths = [tmp_path/f"{i}.png" for i in range(3)]
    for p, a in zip(paths, x): Image.fromarray(a).save(p)
    a, b, c = (eye.embed_pictures(v, progress=False) for v in (x, paths, [Image.open(p) for p in paths]))
    np.testing.assert_allclose(a.vectors, b.vectors, atol=1e-5); np.testing.assert_allclose(a.vectors, c.vectors, atol=1e-5)
    assert a.vectors.dtype == np.float32 and a.meta["items"] != b.meta["items"] and a.meta["transform"] == b.meta["transform"]

def test_batches_do_not_matter(eye):
    x = pixels(mini_pictures("test").iloc[:7])
    np.testing.assert_allclose(eye.embed_pictures(x, batch_size=2, progress=False).vectors, eye.embed_pictures(x, batch_size=64, progress=False).vectors, atol=1e-4)

def test_any_open_clip_model_through_the_same_call():
    import open_clip
    torch.manual_seed(0); eye = load_vision("RN50", "random"); x = pixels(mini_pictures("test").iloc[:2])
    assert isinstance(eye, VisionEncoder) and eye.dim == open_clip.get_model_config("RN50")["embed_dim"]
    own = torch.stack([eye.transform(Image.fromarray(a)) for a in x])
    with torch.no_grad(): np.testing.assert_allclose(eye.embed_pictures(x, progress=False).vectors, eye.model.encode_image(own).numpy(), atol=1e-5)
    assert not any("Random" in type(t).__name__ for t in eye.transform.transforms)          # the evaluation transform (spec D2)

def test_embeddings_round_trip_and_refuse_damage(tmp_path, test_set):
    e = test_set[1][np.arange(5)]; p = save_embeddings(e, tmp_path/"a"/"e.safetensors"); back = load_embeddings(p)
    assert np.array_equal(back.vectors, e.vectors) and back.meta["model"] == "mini" and back.meta["normalized"] == "false"
    np.testing.assert_allclose(np.linalg.norm(back.normalized(), axis=1), 1, rtol=1e-5)
    p.write_bytes(p.read_bytes()[:-100])
    with pytest.raises(NecomimiError, match="not a readable embedding file"): load_embeddings(p)
    with pytest.raises(NecomimiError, match="no embedding file"): load_embeddings(tmp_path/"none")

def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path/"file").write_text("in the way")
    with pytest.raises(NecomimiError, match="cannot write"): save_embeddings(Embeddings(np.ones((1, 2), np.float32)), tmp_path/"file"/"e.safetensors")
    assert [f.name for f in tmp_path.iterdir()] == ["file"]

@pytest.mark.parametrize("make, words", [
    (lambda e: load_vision("ViT-H-14"), "laion2b_s32b_b79k"), (lambda e: load_vision("ViT-B-32", "no-such-tag"), "no-such-tag"), (lambda e: load_vision("NoNet", "x"), "NoNet"),
    (lambda e: e.embed_pictures(["/no/such.png"], progress=False), "/no/such.png"), (lambda e: e.embed_pictures([], progress=False), "no pictures"),
    (lambda e: e.embed_texts([]), "no texts"), (lambda e: as_pil(np.zeros((3, 3, 3))), "float64")])
def test_bad_input(eye, make, words):
    with pytest.raises(NecomimiError, match=words): make(eye)

def test_a_picture_file_that_is_none(eye, tmp_path):
    (tmp_path/"x.jpg").write_bytes(b"not a picture")
    with pytest.raises(NecomimiError, match="x.jpg"): eye.embed_pictures([tmp_path/"x.jpg"], progress=False)
