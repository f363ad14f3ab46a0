"A study whose targets are an intermediate layer or blurred pictures: every stop in a place of its own, through the verbs, the command and the stage notebooks."
import numpy as np, pytest
from necomimi import study as S
from necomimi.data import NecomimiError
from necomimi.training import TrainConfig
from necomimi.vision import Target

pytest.importorskip("open_clip", reason="needs necomimi[mini]")
QUICK = TrainConfig(encoder="mlp", epochs=1, batch_size=256, val_fraction=0.)

@pytest.mark.parametrize("text, layer, blur", [("final", "final", 0), ("block-11", "block-11", 0), ("blur-0.02", "final", .02), ("block-3_blur-0.1", "block-3", .1), ("final_blur-0.1", "final", .1)])
def test_a_targets_name_is_read_back(text, layer, blur):
    t = Target.parse(text); assert t == Target(layer, blur) and Target.parse(str(t)) == t

@pytest.mark.parametrize("text", ["", "blok-3", "block-", "blur-", "blur-2", "blur-0.1.2", "block-3_", "_blur-0.1", "block-3blur-0.1", "final_final", None])
def test_what_is_no_target_is_refused_with_the_forms_there_are(text):
    with pytest.raises(NecomimiError, match=r"expected final, block-K \(block-11\)"): Target.parse(text)

@pytest.fixture(scope="module")
def home(tmp_path_factory): return tmp_path_factory.mktemp("study")

@pytest.fixture(scope="module")
def sharp(home):
    s = S.Study.mini(home, **S.TINY); S.prepare(s, [1], progress=False); S.embed(s, progress=False); return s

def test_blurred_targets_have_places_of_their_own_and_are_trained_towards(home, sharp):
    soft = S.Study(home, "mini", "mini", None, options=S.TINY, target="blur-0.1"); assert soft.target == "final_blur-0.1" and soft.eye == "mini_final_blur-0.1" and sharp.eye == "mini"
    with pytest.raises(NecomimiError, match="no embeddings of the training and test pictures by mini_final_blur-0.1.* --target final_blur-0.1"): S.load_targets(soft)
    S.embed(soft, progress=False); a, b = S.load_targets(sharp)["test"], S.load_targets(soft)["test"]
    assert b.meta["blur"] == "0.1" and a.vectors.shape == b.vectors.shape and np.abs(a.normalized() - b.normalized()).max() > .05
    fits = [S.train(s, 1, QUICK, progress=False) for s in (sharp, soft)]; assert sharp.folder(1, "mlp") != soft.folder(1, "mlp") and not np.allclose(*(f.history.loss for f in fits))
    assert S.retrieve_subject(soft, 1, "mlp", n_boot=20).to_dict()["table"] and len(S.overview(soft)) == len(S.overview(sharp)) == 1

def test_a_layer_is_a_target_of_its_own_width(home, sharp, tiny_clip, tmp_path):
    eye = tiny_clip(tmp_path/"clip"); final, layer = (S.Study(home, "mini", str(eye), None, options=S.TINY, target=t) for t in ("final", "block-1"))
    widths = [S.embed(s, progress=False)["test"].vectors.shape[1] for s in (final, layer)]; assert widths == [1024, 64]
    assert S.train(layer, 1, QUICK, progress=False).embed(layer.store(1, "test")).shape == (200, 64)
    with pytest.raises(NecomimiError, match="text_weight=0.5 needs targets in the space of the captions.*found block-1"): S.train(layer, 1, TrainConfig(encoder="mlp", epochs=1, text_weight=.5), "texts", progress=False)
    with pytest.raises(NecomimiError, match="mini takes raw 256-d embeddings of mini shipped; found .*64"): S.draw(layer, 1, "mlp", generator="mini", n_pictures=2, progress=False)

def test_the_command_takes_a_target(home, sharp, capsys):
    from necomimi import cli
    def run(*argv):
        with pytest.raises(SystemExit) as e: cli.main([*map(str, argv)])
        out = capsys.readouterr(); return e.value.code, out.out, out.err
    code, out, err = run("embed", "--root", home, "--mini", "--target", "blur-0.3"); assert code == 0 and "blur 0.3" in out, err
    code, _, err = run("embed", "--root", home, "--mini", "--target", "blur"); assert code == 2 and err.count("\n") == 1 and "expected final, block-K" in err
    code, _, err = run("train", "--root", home, "--mini", "--subjects", 1, "--target", "blur-0.4"); assert code == 2 and "Run: necomimi embed" in err and "--target final_blur-0.4" in err

def test_a_grid_may_run_over_targets():
    pytest.importorskip("papermill", reason="needs necomimi[batch]")
    from necomimi.batch import plan
    tasks = plan(dict(stages=["preprocess", "embed", "train"], parameters=dict(tiny=True), grid=dict(target=["final", "blur-0.1"])))
    assert {s: sum(t.stage == s for t in tasks) for s in ("preprocess", "embed", "train")} == dict(preprocess=1, embed=2, train=2)
