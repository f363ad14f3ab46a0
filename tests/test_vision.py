"Picture and text encoders: the shipped one does what it says, others load through the same call, bad input is named."
import os
import numpy as np
import pytest
import torch
from PIL import Image
from necomimi.data import NecomimiError
from necomimi.mini import mini_concepts, mini_pictures, pixels, random_scene, render
from necomimi.vision import (Embeddings, Target, VisionEncoder, as_pil, blurred, check_embeddings, check_pictures, embed_cached, import_features, load_embeddings,
                             load_vision, mini_folder, save_embeddings)

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

@pytest.fixture(scope="module")
def vit(): torch.manual_seed(0); return load_vision("ViT-B-32", "random")

def test_a_picture_through_vit_b_32_equals_open_clip_by_hand(vit):
    x = pixels(mini_pictures("test").iloc[:2]); own = torch.stack([vit.transform(Image.fromarray(a)) for a in x]); e = vit.embed_pictures(x, progress=False)
    assert isinstance(vit, VisionEncoder) and vit.dim == 512 and vit.blocks == 12
    with torch.no_grad(): np.testing.assert_allclose(e.vectors, vit.model.encode_image(own).numpy(), atol=1e-5)
    assert not any("Random" in type(t).__name__ for t in vit.transform.transforms)          # the evaluation transform (spec D2)
    assert all(p.dtype == torch.float32 for p in vit.model.parameters()) and (e.norms > 2).all() and e.meta["normalized"] == "false"

def test_weights_from_a_local_file_keep_the_tags_name_transform_and_activation(vit, tmp_path):
    from safetensors.torch import save_file
    from open_clip.transformer import QuickGELU
    f = tmp_path/"w.safetensors"; save_file({k: v.half() for k, v in vit.model.state_dict().items()}, f); x = pixels(mini_pictures("test").iloc[:2])
    same = load_vision("ViT-B-32", str(f))
    np.testing.assert_allclose(same.embed_pictures(x, progress=False).array(True), vit.embed_pictures(x, progress=False).array(True), atol=2e-3)
    assert same.pretrained == "w.safetensors"
    quick = load_vision("ViT-B-32", "openai", weights=f)                                    # OpenAI's were trained with another GELU than this name says
    has = lambda e: any(isinstance(m, QuickGELU) for m in e.model.visual.modules()); assert has(quick) and not has(same)
    assert quick.pretrained == "openai" and quick.transform_hash == vit.transform_hash
    del quick, same
    f.write_bytes(f.read_bytes()[:10_000])
    with pytest.raises(NecomimiError, match="w.safetensors could not be loaded"): load_vision("ViT-B-32", "openai", weights=f)
    with pytest.raises(NecomimiError, match="no weight file"): load_vision("ViT-B-32", "openai", weights=tmp_path/"none.pt")

@pytest.fixture(scope="module")
def tiny(tiny_clip, tmp_path_factory): return load_vision(tiny_clip(tmp_path_factory.mktemp("clip")/"tiny"))

@pytest.fixture
def three(tmp_path):
    "Three picture files in folders as THINGS has them."
    files = [tmp_path/"pictures"/f"0000{i}_x"/f"x_{i}.png" for i in range(3)]
    for f, a in zip(files, pixels(mini_pictures("test").iloc[:3])): f.parent.mkdir(parents=True); Image.fromarray(a).save(f)
    return files

def test_a_folder_in_open_clips_layout(tiny, three, tiny_clip, tmp_path):
    e, t = tiny.embed_pictures(three, progress=False), tiny.embed_texts(["cat", "dog"])
    assert e.vectors.shape == (3, 1024) and t.vectors.shape == (2, 1024) and abs(e.norms-1).min() > .1 and not np.allclose(*t.vectors)
    again = load_vision(str(tiny_clip(tmp_path/"same"))); np.testing.assert_array_equal(again.embed_pictures(three, progress=False).vectors, e.vectors)      # one seed, one model
    assert not np.allclose(load_vision(tiny_clip(tmp_path/"other", seed=1)).embed_pictures(three, progress=False).vectors, e.vectors, atol=.1)
    (tmp_path/"same"/"open_clip_config.json").unlink()
    with pytest.raises(NecomimiError, match="open_clip_config.json"): load_vision(tmp_path/"same")

def test_the_hub_cache_is_enough_without_a_net(tiny, three, tiny_clip, tmp_path):
    repo = tmp_path/"cache"/"models--someone--tiny"; tiny_clip(repo/"snapshots"/("a"*40)); (repo/"refs").mkdir(); (repo/"refs"/"main").write_text("a"*40)
    eye = load_vision("hf-hub:someone/tiny", cache_dir=tmp_path/"cache")
    np.testing.assert_array_equal(eye.embed_pictures(three, progress=False).vectors, tiny.embed_pictures(three, progress=False).vectors)
    with pytest.raises(NecomimiError, match="hf-hub:someone/else"): load_vision("hf-hub:someone/else", cache_dir=tmp_path/"cache")
    with pytest.raises(NecomimiError, match="hf download laion/CLIP-ViT-H-14-laion2B-s32B-b79K.*weights=FILE.*HF_HUB_OFFLINE"): load_vision("ViT-H-14", "laion2b_s32b_b79k", cache_dir=tmp_path/"cache")

@pytest.mark.parametrize("cfg, pool", [({}, lambda y: y[:, 0]), (dict(pool_type="avg"), lambda y: y[:, 1:].mean(1)),
                                       (dict(timm_model_name="test_vit", timm_pool="token", timm_proj="linear", image_size=160), lambda y: y[:, 0]),
                                       (dict(timm_model_name="test_vit", timm_pool="avg", timm_proj="linear", image_size=160), lambda y: y[:, 1:].mean(1))])
def test_a_block_is_what_a_hook_on_it_sees(tiny_clip, tmp_path, three, cfg, pool):
    eye = load_vision(tiny_clip(tmp_path/"clip", **cfg)); v, seen = eye.model.visual, []
    block = (v.trunk.blocks if "timm_model_name" in cfg else v.transformer.resblocks)[1]
    hook = block.register_forward_hook(lambda m, i, out: seen.append(out))
    final = eye.embed_pictures(three, progress=False); hook.remove()
    e = eye.embed_pictures(three, progress=False, target=Target("block-1"))
    np.testing.assert_allclose(e.vectors, pool(seen[0]).numpy(), atol=1e-6)
    assert e.meta["layer"] == "block-1" and final.meta["layer"] == "final" and e.dim == 64 != final.dim
    with pytest.raises(NecomimiError, match=f"block-0 to block-{eye.blocks-1}, no block-{eye.blocks}"): eye.embed_pictures(three, target=Target(f"block-{eye.blocks}"))

def test_networks_without_blocks_say_so(eye, three):
    with pytest.raises(NecomimiError, match="mini has no blocks"): eye.embed_pictures(three, target=Target("block-0"))
    for bad in ("last", "block-", "block--1"):
        with pytest.raises(NecomimiError, match="block-11"): Target(bad)
    for bad in (-.1, 2, float("nan")):
        with pytest.raises(NecomimiError, match="blur"): Target(blur=bad)

def test_blur_is_a_gaussian_of_the_sides_fraction(tiny, three):
    from scipy.ndimage import gaussian_filter
    x = torch.rand(1, 3, 60, 80, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    got = blurred(x, .05).numpy(); want = gaussian_filter(x.numpy(), (0, 0, 3, 3), truncate=9)             # .05 x 60 pixels
    np.testing.assert_allclose(got[..., 25:-25, 25:-25], want[..., 25:-25, 25:-25], atol=1e-6)
    even = torch.full((1, 1, 9, 7), 3.); torch.testing.assert_close(blurred(even, .4), even)
    sharp, soft, none = (tiny.embed_pictures(three, progress=False, target=t) for t in (Target(), Target(blur=.2), Target(blur=0)))
    assert not np.allclose(sharp.vectors, soft.vectors, atol=.1) and soft.meta["blur"] == "0.2"; np.testing.assert_array_equal(sharp.vectors, none.vectors)

def test_all_bad_pictures_are_named_before_the_start(tiny, three, tmp_path, monkeypatch):
    cut, text = tmp_path/"cut.jpg", tmp_path/"text.jpg"; Image.open(three[0]).save(cut); cut.write_bytes(cut.read_bytes()[:900]); text.write_text("no picture")
    called = []; monkeypatch.setattr(tiny, "_features", lambda *a: called.append(a))
    with pytest.raises(NecomimiError, match=r"^4 of 7 pictures") as e: tiny.embed_pictures([*three, tmp_path/"gone_1.jpg", cut, text, str(tmp_path/"gone_2.jpg")], progress=False)
    assert all(w in str(e.value) for w in ("gone_1.jpg does not exist", "cut.jpg: image file is truncated", "text.jpg: not a picture", "gone_2.jpg")) and "x_0.png" not in str(e.value) and not called
    with pytest.raises(NecomimiError, match="single path"): check_pictures(str(three[0]))

def test_a_full_gpu_halves_the_batch_and_says_so(tiny, monkeypatch):
    x = pixels(mini_pictures("test").iloc[:7]); whole = tiny.embed_pictures(x, progress=False).vectors; real = tiny.model.encode_image
    def small(batch, room=3):
        if len(batch) > room: raise torch.OutOfMemoryError("full")
        return real(batch)
    monkeypatch.setattr(tiny.model, "encode_image", small)
    with pytest.warns(UserWarning, match="out of GPU memory with a batch of 7; going on with 3"): e = tiny.embed_pictures(x, progress=False)
    np.testing.assert_allclose(e.vectors, whole, atol=1e-4)
    monkeypatch.setattr(tiny.model, "encode_image", lambda b: small(b, 0))
    with pytest.warns(UserWarning), pytest.raises(NecomimiError, match="one at a time does not fit"): tiny.embed_pictures(x, progress=False)

def test_text_templates(tiny):
    a, b = tiny.embed_texts(["cat"], template="This picture is {}"), tiny.embed_texts(["This picture is cat"], template="{}")
    np.testing.assert_array_equal(a.vectors, b.vectors); assert a.meta["template"] == "This picture is {}" and a.meta["kind"] == "texts"
    with pytest.raises(NecomimiError, match="template"): tiny.embed_texts(["cat"], template="a picture")

def test_embeddings_round_trip_and_refuse_damage(tmp_path, test_set):
    e = test_set[1]; p = save_embeddings(e, tmp_path/"a"/"e.safetensors"); back = load_embeddings(p)
    assert np.array_equal(back.vectors, e.vectors) and back.meta == e.meta and back.meta["model"] == "mini" and back.meta["normalized"] == "false"
    assert {"model", "pretrained", "layer", "blur", "dtype", "transform", "items", "fingerprint"} <= set(back.meta)
    np.testing.assert_allclose(np.linalg.norm(back.array(normalized=True), axis=1), 1, rtol=1e-5); np.testing.assert_array_equal(back.array(normalized=False), e.vectors)
    with pytest.raises(TypeError): back.array()                                             # raw or normalised has to be said
    p.write_bytes(p.read_bytes()[:-100])
    with pytest.raises(NecomimiError, match="not a readable embedding file"): load_embeddings(p)
    with pytest.raises(NecomimiError, match="no embedding file"): load_embeddings(tmp_path/"none")

def test_a_selection_knows_its_own_length(tiny):
    x = pixels(mini_pictures("test").iloc[:12]); e = tiny.embed_pictures(x, progress=False); rows = np.arange(3, 10); part = e[rows]
    assert len(part) == 7 and part.meta["n"] == "7" and "items" not in part.meta and e.meta["n"] == "12"
    check_embeddings(part, tiny, x[rows])
    with pytest.raises(NecomimiError, match="other vectors"): check_embeddings(part, tiny, x[:7])

def test_features_of_another_model_transform_or_list_are_refused(tiny, three, tiny_clip, tmp_path):
    p = save_embeddings(tiny.embed_pictures(three, progress=False), tmp_path/"e.safetensors"); assert len(load_embeddings(p, tiny, three)) == 3
    moved = load_vision(tiny_clip(tmp_path/"moved")); load_embeddings(p, moved, three)       # the folder moved, the weights did not change
    with pytest.raises(NecomimiError, match="moved"): load_embeddings(p, moved)               # without pictures only names can be compared
    other = load_vision(tiny_clip(tmp_path/"other", seed=1)); other.name = tiny.name          # the same name, other weights
    with pytest.raises(NecomimiError, match="other vectors for the same pictures"): load_embeddings(p, other, three)
    with pytest.raises(NecomimiError, match="768 wide|1024 wide"): load_embeddings(p, load_vision(tiny_clip(tmp_path/"768", embed_dim=768)), three)
    from torchvision.transforms import CenterCrop, Compose
    crop = VisionEncoder(tiny.model, Compose([CenterCrop(40), *tiny.transform.transforms]), tiny.tokenizer, tiny.name, tiny.pretrained)
    with pytest.raises(NecomimiError, match="another picture transform"): load_embeddings(p, crop, three)
    for pictures, why in ((three[::-1], "another list"), (three[:2], "of 3 pictures, the list has 2")):
        with pytest.raises(NecomimiError, match=why): load_embeddings(p, tiny, pictures)
        with pytest.raises(NecomimiError, match=why): load_embeddings(p, pictures=pictures)   # no model is needed to compare lists
    with pytest.raises(NecomimiError, match="of final, not block-1_blur-0.1"): load_embeddings(p, target=Target("block-1", .1))
    Image.fromarray(pixels(mini_pictures("test").iloc[9:10])[0]).save(three[1])               # the same file name, another picture
    with pytest.raises(NecomimiError, match="other vectors"): load_embeddings(p, tiny, three)

def test_a_study_that_moves_keeps_its_features(tiny, three, tmp_path):
    p = save_embeddings(tiny.embed_pictures(three, progress=False), tmp_path/"e.safetensors"); (tmp_path/"pictures").rename(tmp_path/"elsewhere")
    there = [tmp_path/"elsewhere"/f.parent.name/f.name for f in three]; assert len(load_embeddings(p, tiny, there)) == 3
    with pytest.raises(NecomimiError, match="does not exist"): load_embeddings(p, tiny, three)

def test_the_cache_is_used_when_it_fits_and_made_anew_when_not(tiny, three, tmp_path, monkeypatch, recwarn):
    p, n, real = tmp_path/"c"/"e.safetensors", [], tiny._features; monkeypatch.setattr(tiny, "_features", lambda b, t: n.append(len(b)) or real(b, t))
    many = np.repeat(pixels(mini_pictures("test").iloc[:10]), 2, 0); a = embed_cached(tiny, many, p, progress=False); b = embed_cached(tiny, many, p, progress=False)
    assert n == [20, 5] and np.array_equal(a.vectors, b.vectors) and not recwarn.list       # all, then the fingerprint's five
    with pytest.warns(UserWarning, match="embedding again.*of final, not block-1"): c = embed_cached(tiny, many, p, target=Target("block-1"), progress=False)
    assert c.dim == 64 and load_embeddings(p, tiny, many).meta["layer"] == "block-1"
    p.write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="not a readable embedding file"): assert embed_cached(tiny, three, p, progress=False).dim == 1024

L14 = dict(model="ViT-L-14", pretrained="openai")

def test_the_three_published_forms(tmp_path):
    g = torch.Generator().manual_seed(0); unit = torch.nn.functional.normalize(torch.randn(200, 1024, generator=g)); words = torch.randn(200, 1024, generator=g)
    both, bare, npy = tmp_path/"ViT-H-14_features_test.pt", tmp_path/"bare.pt", tmp_path/"x.npy"
    torch.save(dict(text_features=words, img_features=unit), both); torch.save(unit.half(), bare); np.save(npy, unit[:, None].double().numpy())
    h = dict(model="ViT-H-14", pretrained="laion2b_s32b_b79k", split="test"); a, b, c, t = import_features(both, **h), import_features(bare, **h), import_features(npy, **h), import_features(both, key="text_features", **h)
    for e in (a, b, c): np.testing.assert_allclose(e.vectors, unit.numpy(), atol=1e-3); assert e.vectors.dtype == np.float32 and e.meta["normalized"] == "true" and e.meta["kind"] == "pictures"
    np.testing.assert_array_equal(t.vectors, words.numpy()); assert t.meta["normalized"] == "false" and t.meta["kind"] == "texts"
    with pytest.raises(NecomimiError, match="norms are lost"): a.array(normalized=False)
    for f, more, why in ((both, dict(split="training"), "16540.*found 200"), (both, dict(key="features"), "found text_features, img_features"), (bare, dict(key="text_features"), "bare Tensor")):
        with pytest.raises(NecomimiError, match=why): import_features(f, **(h | more))

def test_the_published_200_x_768_round_trips(shared, tmp_path):
    e = import_features(shared/"data"/"clip_l14_test200.npy", split="test", **L14); back = load_embeddings(save_embeddings(e, tmp_path/"e.safetensors"))
    assert e.vectors.shape == (200, 768) and e.meta["normalized"] == "true"
    np.testing.assert_array_equal(back.vectors, np.load(shared/"data"/"clip_l14_test200.npy")[:, 0].astype(np.float32)); assert back.meta == e.meta
    centre = import_features(shared/"data"/"clip_l14_center200.npy", **L14)                  # other pictures of the same concepts lie nearest
    assert ((e.array(normalized=True) @ centre.array(normalized=True).T).argmax(1) == np.arange(200)).mean() > .8

class Evil:
    def __init__(self, mark): self.mark = mark
    def __reduce__(self): return os.system, (f"touch {self.mark}",)

def test_files_that_are_no_features_are_refused_and_nothing_in_them_runs(tmp_path):
    mark = tmp_path/"ran"; cases = {}
    torch.save(dict(img_features=Evil(mark)), tmp_path/"evil.pt"); cases["evil.pt"] = "system, which could run code"
    np.save(tmp_path/"evil.npy", np.array(Evil(mark), object), allow_pickle=True); cases["evil.npy"] = "system"
    torch.save(torch.zeros(3, 4, 5), tmp_path/"cube.pt"); cases["cube.pt"] = r"\(3, 4, 5\)"
    torch.save(torch.full((2, 4), float("nan")), tmp_path/"nan.pt"); cases["nan.pt"] = "NaN"
    torch.save([1, "a"], tmp_path/"list.pt"); cases["list.pt"] = "found list"
    (tmp_path/"junk.pt").write_bytes(b"junk"); cases["junk.pt"] = "could not be loaded"; cases["none.pt"] = "no feature file"
    for f, why in cases.items():
        with pytest.raises(NecomimiError, match=why): import_features(tmp_path/f, **L14)
    assert not mark.exists()

def test_imported_features_are_checked_by_their_vectors(tiny, three, tmp_path):
    e = tiny.embed_pictures(three, progress=False); torch.save(torch.from_numpy(e.array(normalized=True)), tmp_path/"x.pt"); x = import_features(tmp_path/"x.pt", model="tiny", pretrained="?")
    check_embeddings(x, tiny, three)
    with pytest.raises(NecomimiError, match="other vectors"): check_embeddings(x, tiny, three[::-1])

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
