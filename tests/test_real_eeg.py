"""Real EEG, end to end: category responses of 46 people (THINGS-EEG1, OpenNeuro ds003825, CC0) -> ridge -> embedding of the category -> category -> picture.

Protocol, the same for every window:
- x (46 subjects, 5 categories, 63 channels, time): one averaged response a subject and category, so 230 responses; 5 categories, chance 20 %.
- Two subjects lack FCz; it is interpolated from their own other channels (mne, spherical splines).
- Per-subject normalisation inside the window: the subject's mean over his five responses is subtracted and each channel divided by its standard deviation.
  It uses a test subject's own five responses as a set, without labels (transductive-lite). Each response is then classified on its own: no one-to-one assignment.
- Targets: mean embedding, by the mini picture encoder, of training-concept pictures of each category. Mini has no body parts: "body" stands for what is worn on it (clothing).
- RidgeEncoder on all 63 channels; five folds over subjects (seed 0), so that each is tested once; the penalty is chosen by leaving one *training* subject out.
- Category = highest cosine between predicted and category embeddings, both after subtracting the mean of the five category embeddings.
- 95 % intervals: bootstrap over the 46 subjects (2000 draws, seed 0), which keeps a subject's five responses together. It does not contain the luck of the
  training set, which all subjects share: 19 trainings on shuffled labels spread over 10-37 % (mean 20 %), wider than any one interval.

Known and not hidden: the window before the picture is not empty in these averages (pictures came at 10 Hz, so it holds the answer to earlier ones; we do not know
what makes it differ between categories). Under this protocol it is at chance. Sharper decoders (17 occipito-parietal channels, whitening, a penalty chosen by
accuracy) reach 84-93 % after the picture, but also 24-39 % before it, mostly beyond the 95 % range of shuffled labels (14-26 % with one-hot targets, 200 shuffles).
The protocol above was the plan, but it was kept knowing this: read its chance level as "nothing a strongly regularised decoder finds", not as proof of an empty window.
"""
import numpy as np, pytest
from necomimi.data import make_info
from necomimi.encoders import RidgeEncoder, normalise_per_subject

GROUPS = dict(animal=["animal-mammal", "animal-bird", "animal-bug", "animal-reptile", "animal-marine"], body=["clothing"],
              food=["food-fruit", "food-vegetable", "food-prepared", "food-sweet", "food-asian", "food-marine"], tool=["tool"], vehicle=["transport-ground"])
SUBJECTS, LABELS = np.repeat(np.arange(46), 5), np.tile(np.arange(5), 46)


def repaired(x, ch_names):
    "Channels that a subject lacks (all NaN), interpolated from his other channels by spherical splines."
    import mne
    for s in np.flatnonzero(np.isnan(x).any((1, 2, 3))):
        bad = np.isnan(x[s]).any((0, 2)); e = mne.EpochsArray(np.where(bad[:, None], 0, x[s]), make_info(ch_names), verbose=False)
        e.info["bads"] = list(np.array(ch_names)[bad]); x[s] = e.interpolate_bads(verbose=False).get_data(copy=False)
    return x


@pytest.fixture(scope="module")
def erp(shared):
    d = np.load(shared/"data"/"things_eeg1_erp.npz", allow_pickle=False)
    assert list(d["cats"]) == list(GROUPS) and d["x"].shape == (46, 5, 63, 276)
    x = repaired(d["x"].astype("float32"), d["chs"])
    assert np.isfinite(x).all()
    return lambda start, stop: normalise_per_subject(x[..., (d["time"] > start-.002) & (d["time"] < stop-.002)].reshape(230, 63, -1), SUBJECTS)


@pytest.fixture(scope="module")
def vision():
    from necomimi.vision import load_vision
    return load_vision("mini")


@pytest.fixture(scope="module")
def gallery(vision):
    "Training-concept mini pictures of the five categories, one a concept: their category (n,), embeddings (n, 256), and the mean of each category (5, 256)."
    from necomimi.mini import mini_pictures, pixels
    of = {sub: i for i, subs in enumerate(GROUPS.values()) for sub in subs}
    p = mini_pictures("training", n_exemplars=1); p = p[p.subcategory.isin(of)]; category = p.subcategory.map(of).to_numpy()
    vectors = vision.embed_pictures(pixels(p), progress=False).vectors
    return category, vectors, np.stack([vectors[category == c].mean(0) for c in range(5)])


def predict(eeg, targets, labels=LABELS):
    "Embeddings (230, dim) of every response, by ridge encoders that never saw its subject; `targets` (5, dim), `labels` what the training is told."
    from sklearn.model_selection import GroupKFold
    out = np.empty((230, targets.shape[1]), "float32")
    for train, test in GroupKFold(5, shuffle=True, random_state=0).split(eeg, groups=SUBJECTS):
        out[test] = RidgeEncoder().fit(eeg[train], targets[labels[train]], groups=SUBJECTS[train]).predict(eeg[test])
    return out


def closest(embeddings, options, centre):
    "Index of the option with the highest cosine, seen from `centre`; each embedding on its own."
    unit = lambda a: (a-centre)/np.linalg.norm(a-centre, axis=1, keepdims=True)
    return (unit(embeddings) @ unit(options).T).argmax(1)


def interval(hits):
    "Accuracy and its 95 % bootstrap interval over subjects; `hits` (n,) with five rows a subject."
    per = np.asarray(hits, float).reshape(-1, 5).mean(1)
    return per.mean(), *np.quantile(per[np.random.default_rng(0).integers(len(per), size=(2000, len(per)))].mean(1), (.025, .975))


def decode(eeg, targets, labels=LABELS):
    result = interval(closest(predict(eeg, targets, labels), targets, targets.mean(0)) == LABELS)
    print("accuracy {:.1%} [{:.1%}, {:.1%}]".format(*result))
    return result


def test_category_after_the_picture(erp, gallery):
    accuracy, low, high = decode(erp(0, .5), gallery[2])
    assert accuracy >= .70 and low > .20


def test_chance_before_the_picture(erp, gallery):
    accuracy, low, high = decode(erp(-.1, 0), gallery[2])
    assert low <= .20 <= high and accuracy < .30


def test_shuffled_training_labels_do_worse(erp, gallery):
    "Nineteen trainings on labels shuffled within each subject: all below the real one (p = 0.05), around chance together."
    eeg, rng = erp(0, .5), np.random.default_rng(0)
    null = [decode(eeg, gallery[2], np.concatenate([rng.permutation(5) for _ in range(46)]))[0] for _ in range(19)]
    assert max(null) < .5 < decode(eeg, gallery[2])[0] and abs(np.mean(null)-.2) < .04


def test_category_does_not_come_from_the_targets(erp):
    "Five random directions serve as well as picture embeddings."
    assert decode(erp(0, .5), np.random.default_rng(0).standard_normal((5, 256)).astype("float32"))[0] >= .70


def test_the_road_goes_on_to_a_picture(erp, gallery, vision):
    """Six test subjects, 30 responses: predicted embedding -> nearest picture among the training-concept gallery of all five categories (a category's mean embedding
    would draw a blend) -> generated from that picture's embedding -> judged by the nearest category mean. The judge is the encoder that gave the targets."""
    from necomimi.generation import generate, load_generator
    category, vectors, means = gallery; centre = means.mean(0)
    rows = np.isin(SUBJECTS, np.random.default_rng(0).permutation(46)[:6])
    near = closest(predict(erp(0, .5), means)[rows], vectors, centre)
    pictures = generate(load_generator("mini"), vectors[near], seed=0, progress=False)
    judged = closest(vision.embed_pictures(pictures, progress=False).vectors, means, centre)
    kept, (right, low, high) = np.mean(judged == category[near]), interval(judged == LABELS[rows])
    print(f"30 pictures, {len(np.unique(near))} sources: drawn as the predicted category {kept:.0%}, as the seen one {right:.0%} [{low:.0%}, {high:.0%}]")
    assert pictures.shape == (30, 64, 64, 3) and pictures.dtype == np.uint8
    assert kept >= .70 and low > .20
