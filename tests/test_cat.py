"The CAT-style score: table, judges, control, ceiling, paired difference."
import json, zlib
from types import SimpleNamespace
import numpy as np, pandas as pd, pytest
from necomimi import cat
from necomimi.cat import HumanJudge, Judgement, SLOTS, TagTable, ZeroShotJudge, cat_difference, cat_score, mini_tags, rating_sheet, write_rating_task
from necomimi.data import NecomimiError

N, DIM = 40, 256
TAGS = dict(broad_1=["animal", "food", "tool"], broad_2=["natural", "made"], background=["white", "blue", "green", "red"], fifth=["small", "large", "huge"])

@pytest.fixture(scope="module")
def tags():
    rng = np.random.default_rng(0)
    df = pd.DataFrame({s: rng.choice(t, N) for s, t in TAGS.items()} | dict(specific=[f"thing_{i}" for i in range(N)]), index=[f"p{i:02d}" for i in range(N)])
    return TagTable.from_frame(df, prompts=TAGS | dict(broad_2=dict(natural=["grown", "born"], made="built")), name="toy")

class FakeVision:
    "Reads the five tag codes planted in a picture's first row, and sees the sum of their words' random directions."
    name = "fake"
    def __init__(self, tags): self.tags, self.calls = tags, []
    def _unit(self, text): v = np.random.default_rng(zlib.crc32(text.encode())).standard_normal(DIM); return v/np.linalg.norm(v)
    def _out(self, v): v = np.stack(v).astype(np.float32); return SimpleNamespace(normalized=lambda: v/np.linalg.norm(v, axis=1, keepdims=True))
    def embed_texts(self, texts, template): self.calls.append(texts); return self._out([self._unit(template.format(t)) for t in texts])
    def embed_pictures(self, pictures, progress):
        words = [list(self.tags.prompts[s].values()) for s in SLOTS]
        return self._out([sum(self._unit(f"a picture of {w[c][0]}") for w, c in zip(words, x[0, :5, 0])) for x in pictures])

def plant(codes): x = np.zeros((len(codes), 8, 8, 3), np.uint8); x[:, 0, :5, 0] = codes; return x

@pytest.fixture(scope="module")
def judge(tags): return ZeroShotJudge(FakeVision(tags))

@pytest.fixture(scope="module")
def full(tags, judge): return cat_score(plant(tags.codes), tags, judge, n_shuffles=300)

def some_wrong(tags, share, seed):
    "Codes with `share` of the tags replaced by another candidate."
    rng = np.random.default_rng(seed); sizes = np.array([len(c) for c in tags.candidates.values()])
    return np.where(rng.random((N, 5)) < share, (tags.codes+1+rng.integers(0, sizes-1, (N, 5))) % sizes, tags.codes)

# --- table

def test_five_slots_and_codes(tags):
    assert len(SLOTS) == 5 and len(tags) == N and tags.codes.shape == (N, 5)
    for k, (s, c) in enumerate(tags.candidates.items()): assert [c[i] for i in tags.codes[:, k]] == tags.truth[s].tolist()
    assert tags.prompts["broad_2"] == dict(natural=("grown", "born"), made=("built",)) and tags.prompts["specific"]["thing_3"] == ("thing 3",)

def test_round_trips_keep_the_fingerprint(tags, tmp_path):
    back = TagTable.load(tags.save(tmp_path/"t.json"))
    assert str(back) == str(tags) and back.truth.equals(tags.truth) and back.meaning == tags.meaning
    assert TagTable.load(tags.save(tmp_path/"t.csv"), prompts=tags.prompts).digest == tags.digest
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t.csv", "t.json"]

def test_digest_follows_content(tags):
    other = TagTable(tags.truth, tags.prompts | dict(fifth={t: (t+" thing",) for t in tags.prompts["fifth"]}), tags.meaning)
    assert other.digest != tags.digest
    assert TagTable(tags.truth, tags.prompts, tags.meaning, name="renamed").digest == tags.digest

def test_edited_json_is_refused(tags, tmp_path):
    p = tags.save(tmp_path/"t.json"); p.write_text(p.read_text().replace('"huge"', '"vast"'))
    with pytest.raises(NecomimiError, match="fingerprint"): TagTable.load(p)
    p.write_text('{"a": 1}')
    with pytest.raises(NecomimiError, match="expected a tag table"): TagTable.load(p)

def test_unwritable_place_is_one_error(tags, tmp_path):
    (tmp_path/"file").write_text("x")
    with pytest.raises(NecomimiError, match="cannot write"): tags.save(tmp_path/"file"/"t.json")

@pytest.mark.parametrize("spoil, says", [
    (lambda d: d.drop(columns="fifth"), "columns"), (lambda d: d.iloc[:0], "at least one picture"), (lambda d: d.rename(index={"p01": "p00"}), "more than once"),
    (lambda d: d.assign(background=[None]+list(d.background[1:])), "no tag in slot 'background'"), (lambda d: d.assign(fifth=["  "]+list(d.fifth[1:])), "no tag in slot 'fifth'"),
    (lambda d: d.assign(fifth="large"), "1 candidate"), (lambda d: d.assign(specific=["a_b", "a-b"]+list(d.specific[2:])), "worded alike")])
def test_unsound_tables_are_refused(tags, spoil, says):
    with pytest.raises(NecomimiError, match=says): TagTable.from_frame(spoil(tags.truth))

def test_unknown_tag_and_mute_candidate(tags):
    with pytest.raises(NecomimiError, match="not among its 2 candidates"): TagTable.from_frame(tags.truth, prompts=dict(fifth=["small", "large"]))
    with pytest.raises(NecomimiError, match="no words"): TagTable.from_frame(tags.truth, prompts=dict(fifth=dict(small="small", large="large", huge=[])))

def test_mini_tags():
    mini = pytest.importorskip("necomimi.mini")
    pictures = mini.mini_pictures("test"); t = mini_tags(pictures)
    assert len(t)*len(SLOTS) == 1000 and [len(c) for c in t.candidates.values()][:4] == [5, 2, 200, 6]
    assert set(cat.NATURAL) | set(cat.MADE) == set(mini.mini_concepts().subcategory) and not set(cat.NATURAL) & set(cat.MADE)
    assert t.prompts["broad_1"]["nature"] == ("a kind of nature",) and t.prompts["background"]["sand"] == ("sand background",) and "animal mammal" in t.prompts["broad_2"]["natural"]
    named = pictures.assign(background=[s.background for s in pictures.scene]).drop(columns="scene")
    assert mini_tags(named).digest == t.digest
    with pytest.raises(NecomimiError, match="background"): mini_tags(named.drop(columns="background"))

def test_table_of_things_eeg2(shared):
    "A user's own table: THINGS concepts with their published 53 categories."
    names = [r["concept"][6:] for r in json.loads((shared/"data"/"eeg2_split.json").read_text())["test"]]
    kinds = pd.read_csv(shared/"data"/"category53_longFormat.tsv", sep="\t").drop_duplicates("uniqueID").set_index("uniqueID").category
    df = pd.DataFrame(dict(concept=names, kind=[kinds.get(n, "other") for n in names])); df["group"] = np.where(df.kind.isin(["animal", "fruit", "vegetable"]), "grown", "not grown")
    df["behind"] = np.resize(["plain", "scene"], 200); df["length"] = df.concept.str.len().gt(6)
    t = TagTable.from_frame(df, dict(broad_1="kind", broad_2="group", specific="concept", background="behind", fifth="length"), picture="concept")
    assert len(t) == 200 and len(t.candidates["specific"]) == 200 and t.truth.index[0] == "aircraft_carrier" and 10 < len(t.candidates["broad_1"]) < 54

# --- zero-shot judge and score

def test_planted_pictures_earn_everything(full):
    assert full.total == 5*N and (full.table.points[:5] == N).all() and full.p < .01
    assert full.table.low["total"] == full.table.high["total"] == 5*N

def test_points_count_the_tags_left(tags, judge):
    codes = some_wrong(tags, .5, 1); r = cat_score(plant(codes), tags, judge, n_shuffles=10)
    np.testing.assert_array_equal(r.points, codes == tags.codes)
    assert r.table.points.tolist() == [*(codes == tags.codes).sum(0), (codes == tags.codes).sum()]

def test_control_is_the_permutation_mean(tags, judge, full):
    counts = [tags.truth[s].value_counts() for s in SLOTS]
    expected = [float((c**2).sum()/N) for c in counts]                            # a perfect judge against a random row
    np.testing.assert_allclose(full.table.shuffled[:5], expected, atol=1)
    assert full.table.shuffled_low["total"] < sum(expected) < full.table.shuffled_high["total"] < full.total

def test_one_picture_repeated_equals_its_control(tags, judge):
    r = cat_score(plant(np.repeat(tags.codes[:1], N, 0)), tags, judge, n_shuffles=20)
    assert r.total == r.table.shuffled["total"] == r.table.shuffled_high["total"] and r.p == 1

def test_shuffled_pictures_are_not_significant(tags, judge):
    ps = [cat_score(plant(tags.codes[np.random.default_rng(s).permutation(N)]), tags, judge, n_shuffles=99, n_boot=10).p for s in range(20)]
    assert np.mean(ps) > .25 and sum(p <= .05 for p in ps) <= 4

def test_bootstrap_interval_has_the_binomial_width(tags):
    points = np.random.default_rng(0).random((400, 5)) < .3
    draws = cat.bootstrap_points(points, 4000, 0).sum(1); per = points.sum(1)
    np.testing.assert_allclose([draws.mean(), draws.std()], [points.sum(), np.sqrt(400)*per.std()], rtol=.03)

def test_seed_decides(tags, judge):
    x = plant(some_wrong(tags, .5, 1)); a, b, c = (cat_score(x, tags, judge, n_shuffles=50, seed=s) for s in (0, 0, 1))
    assert a.table.equals(b.table) and not a.table.equals(c.table)

def test_ceiling_pictures_or_result(tags, judge, full):
    x = plant(some_wrong(tags, .5, 1))
    a, b = (cat_score(x, tags, judge, ceiling=c, n_shuffles=50) for c in (plant(tags.codes), full))
    assert a.table.ceiling["total"] == b.table.ceiling["total"] == 5*N and 0 < a.reached < 1 and cat_score(x, tags, judge).reached is None
    with pytest.raises(NecomimiError, match="score both alike"): cat_score(x, tags, ZeroShotJudge(FakeVision(tags), "one {}"), ceiling=full)

def test_top_k_grants_more(tags):
    x = plant(some_wrong(tags, .6, 2)); vision = FakeVision(tags)
    one, five = (cat_score(x, tags, ZeroShotJudge(vision, top={"specific": k}), n_shuffles=10) for k in (1, 20))
    assert five.table.points["specific"] >= one.table.points["specific"] and five.table.shuffled["specific"] > 10 and "20 of specific" in five.protocol["judge"]
    with pytest.raises(NecomimiError, match="between 1 and 1"): ZeroShotJudge(vision, top=2)(x, tags)
    with pytest.raises(NecomimiError, match="expected top"): ZeroShotJudge(vision, top={"kind": 2})

def test_several_words_a_tag(tags):
    "`born` is natural's second word: nearest word and mean agree with a brute-force reading."
    vision = FakeVision(tags); e = vision.embed_texts(["born", "grown", "built"], "a picture of {}").normalized(); born, grown, built = e
    mean = (born+grown)/np.linalg.norm(born+grown)
    for pool, natural in dict(nearest=np.maximum(e@born, e@grown), mean=e@mean).items():
        x = ZeroShotJudge(vision, pool=pool)._near(e, list(tags.prompts["broad_2"].values()))
        np.testing.assert_allclose(x, np.stack([natural, e@built], 1), atol=1e-6)

def test_texts_are_embedded_once(tags):
    vision = FakeVision(tags); judge = ZeroShotJudge(vision)
    for seed in range(3): judge(plant(some_wrong(tags, .5, seed)), tags)
    assert len(vision.calls) == 5

def test_bad_pictures(tags, judge):
    x = plant(tags.codes)
    for bad in (x[:-1], x[..., :1], x.astype(float), x[0]):
        with pytest.raises(NecomimiError, match="uint8 pictures"): cat_score(bad, tags, judge)
    blind = SimpleNamespace(name="nan", embed_texts=judge.vision.embed_texts, embed_pictures=lambda p, progress: SimpleNamespace(normalized=lambda: np.full((len(p), DIM), np.nan)))
    with pytest.raises(NecomimiError, match="no finite embedding"): cat_score(x, tags, ZeroShotJudge(blind))
    with pytest.raises(NecomimiError, match="template"): ZeroShotJudge(blind, template="a picture")
    with pytest.raises(NecomimiError, match="pool"): ZeroShotJudge(blind, pool="sum")

def test_incomplete_judge_is_refused(tags):
    with pytest.raises(NecomimiError, match="never judged"): cat_score(None, tags, lambda p, t: Judgement(np.full((N, N, 5), -1, np.int8), "lazy"))

def test_result_prints_and_serialises(tags, judge, full):
    r = cat_score(plant(some_wrong(tags, .5, 1)), tags, judge, ceiling=full, simulated=True)
    assert all(w in repr(r) for w in ("CAT-style", "SIMULATED", "control", "ceiling", tags.digest, "fake", "seed 0")) and "<table>" in r._repr_html_()
    d = json.loads(json.dumps(r.to_dict(points=True)))
    assert d["total"] == r.total == np.sum(d["points"]) and [s["slot"] for s in d["slots"]] == [*SLOTS, "total"] and d["protocol"]["simulated"] is True
    assert json.loads(json.dumps(full.to_dict()))["slots"][0]["ceiling"] is None and "SIMULATED" not in repr(full)

def test_plot(tags, judge, full):
    import matplotlib; matplotlib.use("Agg", force=False); import matplotlib.pyplot as plt
    ax = full.plot(); assert "200 of 200" in ax.get_title() and len(ax.get_yticklabels()) == 5; plt.close("all")

# --- difference

def test_difference_is_paired(tags, judge):
    a, b, c = (cat_score(plant(some_wrong(tags, s, 5)), tags, judge, n_shuffles=10) for s in (.3, .35, .8))
    near, far = cat_difference(a, b, 2000), cat_difference(a, c, 2000)
    assert far.difference == a.total-c.total and far.interval[0] > 0 and far.p < .01 and near.p > far.p
    same = cat_difference(a, a, 500); assert same.difference == 0 and same.interval == (0, 0) and same.p == 1
    turned = cat_difference(c, a, 2000); assert turned.difference == -far.difference and turned.interval[1] < 0
    assert json.loads(json.dumps(far.to_dict()))["slots"][-1]["slot"] == "total" and "paired" in repr(far) and "<table" in far._repr_html_()
    # pairing removes what both share: the interval is narrower than that of unpaired scores
    wa, wb = (np.diff(r.table.loc["total", ["low", "high"]])[0] for r in (a, b)); assert np.diff(near.interval)[0] < np.hypot(wa, wb)

def test_difference_needs_like_with_like(tags, judge, full):
    other = cat_score(plant(tags.codes), tags, ZeroShotJudge(FakeVision(tags), pool="mean"), n_shuffles=10)
    with pytest.raises(NecomimiError, match="same judge"): cat_difference(full, other)
    renamed = TagTable(tags.truth, tags.prompts, tags.meaning, name="other")
    with pytest.raises(NecomimiError, match="same tags"): cat_difference(full, cat_score(plant(tags.codes), renamed, judge, n_shuffles=10))

# --- people

def answer(sheet, key, tags, codes, raters=("A",), slip=0., seed=0):
    "Ratings by people who know the planted codes."
    rng = np.random.default_rng(seed); row = dict(zip(key.blind, range(N))); shown = {s: [c[i] for i in codes[:, k]] for k, (s, c) in enumerate(tags.candidates.items())}
    yes = np.array([shown[q.slot][row[q.picture]] == q.tag for q in sheet.itertuples()])
    return pd.concat([sheet.assign(rater=r, point=(yes ^ (rng.random(len(yes)) < slip)).astype(int)) for r in raters])

def test_sheet_is_blind_and_complete(tags):
    sheet, key = rating_sheet(tags, seed=3); again, _ = rating_sheet(tags, seed=3); other, _ = rating_sheet(tags, seed=4)
    assert sheet.equals(again) and not sheet.equals(other) and key.blind.is_unique and not set(sheet.picture) & set(tags.truth.index)
    assert (key.decoy != key.picture).all() and sorted(key.decoy) == sorted(key.picture) and not sheet.duplicated(["picture", "slot", "tag"]).any()
    plain, k = rating_sheet(tags, decoys=False); assert len(plain) == 5*N and "decoy" not in k

def test_people_agree_with_the_zero_shot_judge(tags, judge):
    codes = some_wrong(tags, .4, 1); sheet, key = rating_sheet(tags)
    h = cat_score(None, tags, HumanJudge(answer(sheet, key, tags, codes), key), n_shuffles=50); z = cat_score(plant(codes), tags, judge, n_shuffles=50)
    np.testing.assert_array_equal(h.points, z.points)
    rows = tags.truth.index.get_indexer(key.decoy); decoy_points = (codes == tags.codes[rows]).sum()
    assert h.p is None and abs(h.table.shuffled["total"]-decoy_points) < 2 and "decoys" in h.protocol["control"]

def test_without_decoys_the_control_is_a_lower_bound(tags, judge):
    codes = some_wrong(tags, .4, 1); sheet, key = rating_sheet(tags, decoys=False)
    h = cat_score(None, tags, HumanJudge(answer(sheet, key, tags, codes), key)); z = cat_score(plant(codes), tags, judge)
    assert h.total == z.total and h.p is None and "LOWER BOUND" in repr(h) and h.table.shuffled["total"] < z.table.shuffled["total"]

def test_majority_and_raw_agreement(tags):
    sheet, key = rating_sheet(tags, decoys=False); one = answer(sheet, key, tags, tags.codes)
    two = pd.concat([one, one.assign(rater="B", point=0)])                       # a tie everywhere: no point
    tie = cat_score(None, tags, HumanJudge(two, key)); assert tie.total == 0 and "0.0% of rater pairs" in repr(tie)
    three = pd.concat([two, one.assign(rater="C")]); most = HumanJudge(three, key)(None, tags)
    assert most.points.sum() == 5*N and most.notes["raters"] == 3 and "33.3%" in most.notes["raw agreement"]
    assert "raw agreement" not in HumanJudge(one, key)(None, tags).notes
    noisy = answer(sheet, key, tags, tags.codes, "ABC", slip=.1, seed=2); assert HumanJudge(noisy, key)(None, tags).points.sum() > 5*N*.93

def test_plain_ratings_from_csv(tags, tmp_path):
    "No blind ids, no tag column: picture, slot, point, rater."
    rows = [(p, s, int(i % 2), "me") for i, p in enumerate(tags.truth.index) for s in SLOTS]
    pd.DataFrame(rows, columns=["picture", "slot", "point", "rater"]).to_csv(tmp_path/"r.csv", index=False)
    r = cat_score(None, tags, HumanJudge(tmp_path/"r.csv")); assert r.total == 5*N/2 and (r.points.sum(1) == [5*(i % 2) for i in range(N)]).all()

@pytest.mark.parametrize("spoil, says", [
    (lambda r: r.drop(columns="rater"), "expected the columns"), (lambda r: r.iloc[3:], "3 of 200 cells have no rating"),
    (lambda r: r.assign(point=[""]+list(r.point[1:])), "1 of 200 cells have no rating"), (lambda r: r.assign(point=2), "points 0 or 1"),
    (lambda r: r.assign(point="yes"), "points 0 or 1"), (lambda r: r.assign(slot="broad"), "expected the slots"), (lambda r: r.assign(rater=""), "without a rater"),
    (lambda r: pd.concat([r, r.iloc[:1]]), "rated twice"), (lambda r: r.assign(tag="dragon"), "not among the candidates"), (lambda r: r.iloc[:0], "200 of 200 cells"),
    (lambda r: r.assign(picture="x"), "not in the tag table")])
def test_bad_ratings(tags, spoil, says):
    sheet, key = rating_sheet(tags, decoys=False); good = answer(sheet, key, tags, tags.codes).reset_index(drop=True)
    with pytest.raises(NecomimiError, match=says): HumanJudge(spoil(good), key)(None, tags)

def test_blind_ratings_need_the_key_and_all_decoys(tags):
    sheet, key = rating_sheet(tags); good = answer(sheet, key, tags, tags.codes)
    with pytest.raises(NecomimiError, match="blind ids need key"): HumanJudge(good)(None, tags)
    blind = dict(zip(key.blind, key.picture)); truth = [tags.truth.at[blind[q.picture], q.slot] == q.tag for q in good.itertuples()]
    with pytest.raises(NecomimiError, match="decoy questions"): HumanJudge(good[truth], key)(None, tags)

def test_rating_task_on_disk(tags, tmp_path):
    folder = write_rating_task(tmp_path/"task", plant(tags.codes), tags, key=tmp_path/"key.csv")
    key = pd.read_csv(tmp_path/"key.csv", dtype=str); sheet = pd.read_csv(folder/"ratings.csv", dtype=str)
    assert {p.stem for p in folder.glob("*.png")} == set(key.blind) == set(sheet.picture) and sorted(p.name for p in tmp_path.iterdir()) == ["key.csv", "task"]
    with pytest.raises(NecomimiError, match="200 of 200 cells"): HumanJudge(folder/"ratings.csv", tmp_path/"key.csv")(None, tags)      # nobody has rated yet
    answer(sheet, key, tags, tags.codes).to_csv(folder/"ratings.csv", index=False)
    assert cat_score(None, tags, HumanJudge(folder/"ratings.csv", tmp_path/"key.csv")).total == 5*N
    with pytest.raises(NecomimiError, match="exists"): write_rating_task(folder, plant(tags.codes), tags, key=tmp_path/"k2.csv")
    with pytest.raises(NecomimiError, match="keep it elsewhere"): write_rating_task(tmp_path/"b", plant(tags.codes), tags, key=tmp_path/"b"/"key.csv")
    with pytest.raises(NecomimiError, match="uint8"): write_rating_task(tmp_path/"c", plant(tags.codes)[:3], tags, key=tmp_path/"k3.csv")
    assert not (tmp_path/"c").exists() and not (tmp_path/"k3.csv").exists()
