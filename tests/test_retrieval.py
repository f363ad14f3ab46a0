"Retrieval: the closed form against brute force, intervals against known errors, ties, controls, bad input."
import json
import numpy as np, pytest
from necomimi.data import NecomimiError
from necomimi.retrieval import crossed_bootstrap, kway, n_below, repetition_curve, retrieve, retrieval_difference

how = dict(split="synthetic", gallery_name="random directions", repetitions=1, n_boot=200, n_shuffles=200)
def problem(n=200, dim=64, noise=3.6, seed=0):
    rng = np.random.default_rng(seed); gallery = rng.standard_normal((n, dim))
    return gallery + noise*rng.standard_normal((n, dim)), gallery

@pytest.mark.parametrize("k,top", [(2, 1), (4, 1), (10, 1), (50, 5), (100, 5), (7, 3)])
def test_closed_form_is_what_drawing_distractors_gives(k, top):
    rng, r = np.random.default_rng(1), np.array([0, 40, 120, 180, 195, 198, 199])
    picked = rng.random((4000, 199)).argsort(1)[:, :k-1]
    drawn = np.array([((picked >= i).sum(1) < top).mean() for i in r])
    np.testing.assert_allclose(kway(r, 200, k, top), drawn, atol=.035)

def test_closed_form_known_values():
    r = np.arange(200)
    np.testing.assert_allclose(kway(r, 200, 2), r/199, atol=1e-12)                      # 2-way top-1 is the share of distractors below
    np.testing.assert_allclose(kway(r, 200, 200), r == 199, atol=1e-12)                  # whole gallery: first or not
    np.testing.assert_allclose(kway(r, 200, 200, 5), r >= 195, atol=1e-12)
    for k, top in [(2, 1), (10, 1), (50, 5), (200, 5)]: np.testing.assert_allclose(kway(r, 200, k, top).mean(), top/k)   # uniform places = chance
    np.testing.assert_allclose(kway(3, 5, 3), 3/6)                                        # C(3,2)/C(4,2)
    assert kway(2, 5, 5, top=5) == 1

@pytest.mark.parametrize("k,top", [(2, 1), (3, 1), (5, 2)])
def test_ties_are_the_mean_over_all_orders(k, top):
    np.testing.assert_allclose(kway(1, 6, k, top, ties=3), np.mean([kway(1+j, 6, k, top) for j in range(4)]))
    scores = np.array([[1., 1, 0, 2]])
    below, ties = n_below(scores, truth=[0], ties=True)
    assert (below, ties) == (1, 1)

def test_brute_force_over_scores_with_ties():
    "All distractor sets and all tie orders, enumerated."
    from itertools import combinations
    rng = np.random.default_rng(0); scores = rng.integers(0, 3, (12, 6)).astype(float); truth = rng.integers(0, 6, 12)
    for k, top in [(3, 1), (4, 2)]:
        want = []
        for s, t in zip(scores, truth):
            cases = []
            for others in combinations([j for j in range(6) if j != t], k-1):
                above, equal = sum(s[j] > s[t] for j in others), sum(s[j] == s[t] for j in others)
                cases.append(np.mean([above + e < top for e in range(equal+1)]))
            want.append(np.mean(cases))
        below, ties = n_below(scores, truth, ties=True)
        np.testing.assert_allclose(kway(below, 6, k, top, ties), want)

def test_bootstrap_matches_the_standard_error_and_widens_over_subjects():
    rng = np.random.default_rng(0); hit = rng.random((200, 1)) < .3
    assert abs(crossed_bootstrap(hit, np.arange(200), n_boot=4000).std()/(hit.std()/200**.5) - 1) < .06
    level = np.repeat([.1, .3, .5, .7, .9], 200); hits = (rng.random(1000) < level)[:, None]
    who, what = np.repeat(range(5), 200), np.tile(range(200), 5)
    pictures_only = crossed_bootstrap(hits, what, n_boot=1000).std(); both = crossed_bootstrap(hits, what, who, n_boot=1000).std()
    assert both > 4*pictures_only and abs(both/(np.std([.1, .3, .5, .7, .9])/5**.5) - 1) < .15

def test_trials_of_a_picture_move_together():
    "100 copies of each trial carry no more information than one."
    hit = (np.random.default_rng(0).random(50) < .4).astype(float)
    one = crossed_bootstrap(hit[:, None], np.arange(50)); copies = crossed_bootstrap(np.repeat(hit, 100)[:, None], np.repeat(np.arange(50), 100))
    np.testing.assert_allclose(one, copies)

def test_retrieve_table_controls_and_protocol():
    z, gallery = problem()
    r = retrieve(z, gallery, **how, simulated=True, train_seeds=(3,))
    t = r.table
    assert list(zip(t.k, t.top)) == [(2, 1), (4, 1), (10, 1), (50, 1), (100, 1), (200, 1), (50, 5), (100, 5), (200, 5)]
    np.testing.assert_allclose(t.chance, t.top/t.k)
    assert ((t.low <= t.accuracy) & (t.accuracy <= t.high) & (t.low > t.shuffled_high) & (t.gain_low > 0)).all()
    np.testing.assert_allclose(t.shuffled, t.chance, atol=.01)
    np.testing.assert_allclose(r[200].accuracy, (r.ranks == 1).mean()); np.testing.assert_allclose(r[200, 5].accuracy, (r.ranks <= 5).mean())
    for said in ("simulated EEG", "synthetic split", "random directions (200)", "n = 200", "seed 0", "not transductive", "(3,)"): assert said in repr(r) and said in r._repr_html_()
    d = json.loads(r.to_json(similarity=True))
    assert len(d["ranks"]) == 200 and np.shape(d["similarity"]) == (200, 200) and d["table"][0]["k"] == 2

def test_order_scale_and_truth_do_not_matter():
    z, gallery = problem(); order = np.random.default_rng(4).permutation(200)
    a, b = retrieve(z, gallery, **how), retrieve(7*z[order], 3*gallery, truth=order, **how)
    np.testing.assert_allclose(a.table.accuracy, b.table.accuracy); np.testing.assert_array_equal(a.ranks[order], b.ranks)
    c = retrieve(z, gallery, **how); assert c.table.equals(a.table)

def test_noise_stays_at_chance_and_dead_encoders_score_exactly_chance():
    z, gallery = problem()
    noise = retrieve(np.random.default_rng(8).standard_normal(z.shape), gallery, **how).table
    assert (noise.low <= noise.chance + .02).all() and (noise.p > .01).all()
    for dead in (np.ones_like(z), np.zeros_like(z)):
        t = retrieve(dead, gallery, **how).table
        np.testing.assert_allclose(t.accuracy, t.chance)

def test_subjects_as_list_dict_and_labels_agree():
    gallery = problem()[1]; each = [gallery + s*np.random.default_rng(i).standard_normal(gallery.shape) for i, s in enumerate((3., 4., 500.))]
    a, b = retrieve(each, gallery, subjects=["x", "y", "z"], **how), retrieve(dict(zip("xyz", each)), gallery, **how)
    c = retrieve(np.concatenate(each), gallery, truth=np.tile(np.arange(200), 3), subjects=np.repeat(list("xyz"), 200), **how)
    assert a.table.equals(b.table) and a.table.equals(c.table) and a.settings["n_subjects"] == 3
    single = [retrieve(e, gallery, **how)[200].accuracy for e in each]
    np.testing.assert_allclose(a.by_subject["200-way top-1"], single); np.testing.assert_allclose(a[200].accuracy, np.mean(single))
    assert "pictures and subjects" in a.protocol

def test_small_gallery_gets_its_own_size():
    z, gallery = problem(n=30)
    assert list(zip(*retrieve(z, gallery, **how).table[["k", "top"]].values.T)) == [(2, 1), (4, 1), (10, 1), (30, 1), (30, 5)]

def test_paired_difference():
    gallery, noise = problem()[1], np.random.default_rng(2).standard_normal((200, 64))
    a, b = (retrieve(gallery + s*noise, gallery, **how) for s in (3., 3.6))
    d = retrieval_difference(a, b)
    np.testing.assert_allclose(d.difference, a.table.accuracy - b.table.accuracy); assert (d.low > 0).all()
    assert (retrieval_difference(a, a).difference == 0).all()
    with pytest.raises(NecomimiError, match="same queries"): retrieval_difference(a, retrieve(gallery[:100], gallery[:100], **how))

def test_plots_draw():
    import matplotlib; matplotlib.use("Agg")
    z, gallery = problem()
    r = retrieve(z, gallery, **how)
    assert len([p for p in r.plot().patches if p.get_height() > 0]) == 9
    assert r.plot_similarity(np.repeat(["a", "b"], 100)).images[0].get_array().shape == (200, 200)
    with pytest.raises(NecomimiError, match="label the 200"): r.plot_similarity(["a"])

def test_repetition_curve():
    gallery = problem()[1]; rng = np.random.default_rng(0)
    trials = (gallery.reshape(200, 1, 8, 8) + 12*rng.standard_normal((200, 20, 8, 8))).astype("float16")
    embed = lambda eeg: eeg.reshape(len(eeg), -1)
    c = repetition_curve(embed, trials, gallery, gallery_name="g", split="synthetic")
    assert c.table.repetitions.tolist() == [1, 2, 5, 10, 20] and c.table.accuracy.is_monotonic_increasing and ((c.table.low <= c.table.accuracy) & (c.table.accuracy <= c.table.high)).all()
    whole = retrieve(trials.mean(1, dtype="float32").reshape(200, -1), gallery, **how)[200].accuracy
    np.testing.assert_allclose(c.table.accuracy.iloc[-1], whole)
    assert repetition_curve(embed, trials, gallery, gallery_name="g", split="synthetic").table.equals(c.table) and "g (200)" in repr(c)
    with pytest.raises(NecomimiError, match="1..20"): repetition_curve(embed, trials, gallery, gallery_name="g", repetitions=[21])
    with pytest.raises(NecomimiError, match="gave shape"): repetition_curve(lambda e: embed(e)[:, :3], trials, gallery, gallery_name="g")

def with_nan(x): x = x.copy(); x[3, 1] = np.nan; return x

@pytest.mark.parametrize("change,says", [
    (lambda z, g: (z[:, :32], g, {}), "width 32"), (lambda z, g: (with_nan(z), g, {}), "first row 3"), (lambda z, g: (z, with_nan(g), {}), "gallery holds NaN"),
    (lambda z, g: (z[:9], g, {}), "truth="), (lambda z, g: (z[:0], g, {}), "non-empty"), (lambda z, g: (z[:1], g[:1], {}), "at least 2"), (lambda z, g: ([], g, {}), "0 arrays"),
    (lambda z, g: (z, g, dict(truth=np.full(200, 200))), "0..199"), (lambda z, g: (z, g, dict(truth=np.arange(5))), "200 gallery indices"),
    (lambda z, g: (z, g, dict(subjects=[1, 2])), "subjects must label"), (lambda z, g: (z, g, dict(ks=[500])), "2..200"), (lambda z, g: ([z, z[:, :3]], g, {}), "differ in width")])
def test_bad_input_is_one_clear_error(change, says):
    z, g, kw = change(*problem())
    with pytest.raises(NecomimiError, match=says): retrieve(z, g, **how, **kw)

def test_kway_refuses_what_makes_no_sense():
    for bad in (dict(k=1), dict(k=201), dict(k=10, top=0)):
        with pytest.raises(NecomimiError): kway([5], 200, **bad)
    with pytest.raises(NecomimiError): kway([200], 200, 2)
    with pytest.raises(NecomimiError, match="truth="): n_below(np.zeros((2, 3)))
