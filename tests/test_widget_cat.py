"CATRater: the rating task, its files and agreement without a page; then the page itself."
import os
import numpy as np, pandas as pd, pytest

from browser import eventually
pytest.importorskip("anywidget", reason="needs necomimi[widgets]")
from necomimi.cat import HumanJudge, SLOTS, cat_score, plain
from necomimi.data import NecomimiError
from necomimi.widgets.cat import CATRater, agreement, all_ratings, begin, open_task, save_rater

SETUP = """
from dataclasses import replace
from necomimi.cat import mini_tags
from necomimi.mini import mini_pictures, pixels
table = mini_pictures("test").iloc[[3, 60, 110, 150]]; pictures, tags = pixels(table), mini_tags(table)
tags = replace(tags, truth=tags.truth.set_axis([f"secret_{i}" for i in range(4)]), name="toy")
"""
scope = {}; exec(SETUP, scope); tags, pictures, N = scope["tags"], scope["pictures"], 4

@pytest.fixture
def task(tmp_path): return open_task(tmp_path/"task", pictures, tags)

def rate(task, name, say):
    "A whole sheet: `say(row)` -> point, in the order the widget asks."
    state = begin(task, name)
    while state.open(task): state.answer(task, r := next(r for r in state.rows(task) if r not in state.points), say(r))
    save_rater(task, state); return state

def truthful(task):
    of = dict(zip(*pd.read_csv(task.key, dtype=str)[["blind", "picture"]].T.values)); s = task.sheet
    return [int(tags.truth.at[of[p], slot] == t) for p, slot, t in s.itertuples(index=False, name=None)]

def test_the_folder_is_blind_and_is_opened_again_by_raters_who_have_nothing_else(task):
    told = "".join(p.read_text() for p in task.folder.iterdir() if p.suffix != ".png")
    assert "secret" not in told and "secret" in task.key.read_text() and task.key.parent != task.folder
    again = open_task(task.folder); assert again.sheet.equals(task.sheet) and again.meaning["fifth"] == "sub-category" and "decoy" in pd.read_csv(task.key)

def test_another_set_of_pictures_or_tags_is_refused(task):
    with pytest.raises(NecomimiError, match="other pictures"): open_task(task.folder, 255-pictures, tags)
    with pytest.raises(NecomimiError, match="other tags"): open_task(task.folder, pictures, scope["replace"](tags, truth=tags.truth.assign(background=tags.truth.background.to_numpy()[::-1])))
    open_task(task.folder, pictures, tags)

def test_what_is_no_task_is_said(tmp_path, task):
    with pytest.raises(NecomimiError, match="give pictures and tags"): open_task(tmp_path/"none")
    (tmp_path/"empty").mkdir()
    with pytest.raises(NecomimiError, match="ratings.csv"): open_task(tmp_path/"empty")
    (tmp_path/"empty"/"ratings.csv").write_text("a,b\n1,2\n")
    with pytest.raises(NecomimiError, match="questions"): open_task(tmp_path/"empty")
    with pytest.raises(NecomimiError, match="does not exist"): open_task(tmp_path/"x", [tmp_path/"gone.png"]*N, tags)
    with pytest.raises(NecomimiError, match="one size"): open_task(tmp_path/"x", [pictures[0], pictures[1, :8], *pictures[2:]], tags)
    assert not (tmp_path/"x").exists()
    (task.folder/"task.json").write_text('{"tags": "mi')
    with pytest.raises(NecomimiError, match="task.json"): open_task(task.folder)

def test_a_rater_comes_back_where_they_left_and_everybody_has_their_own_order(task):
    state = begin(task, "Ada"); first = state.picture; rows = state.rows(task)
    for r in rows[:-1]: assert not state.answer(task, r, 1)
    assert state.answer(task, rows[-1], 0) and state.picture == state.order[1]
    save_rater(task, state); back = begin(task, "Ada")
    assert back.points == state.points and back.place == 1 and back.order == state.order
    assert any(begin(task, n).order != state.order for n in ("Ben", "Cleo", "Dan")) and sorted(begin(task, "Ben").order) == sorted(state.order) and begin(task, "Ben").points == {}
    state.undo(task); assert state.picture == first and rows[-1] not in state.points
    assert not state.answer(task, rows[0], 0) and state.points[rows[0]] == 0                     # answering anew
    with pytest.raises(NecomimiError, match="nothing to take back"): back.undo(task)
    with pytest.raises(NecomimiError, match="0 or 1"): state.answer(task, rows[0], 2)

def test_the_files_are_what_human_judge_reads(task):
    truth = truthful(task); rate(task, "Ada", truth.__getitem__)
    assert cat_score(None, tags, HumanJudge(task.folder/"ratings-Ada.csv", task.key)).total == 5*N
    rate(task, "Ben", lambda r: 0); rate(task, "Cleo", lambda r: 0)
    voted = cat_score(None, tags, HumanJudge(all_ratings(task), task.key)); assert voted.total == 0 and voted.protocol["notes"]["raters"] == 3
    half = begin(task, "Dan"); half.answer(task, 0, 1); save_rater(task, half)
    with pytest.raises(NecomimiError, match="have no rating"): HumanJudge(task.folder/"ratings-Dan.csv", task.key)(None, tags)

@pytest.mark.parametrize("name", ["", "  ", "../up", "a/b", "x"*41, ".hidden"])
def test_a_name_that_is_no_file_name(task, name):
    with pytest.raises(NecomimiError, match="name"): begin(task, name)

@pytest.mark.parametrize("damage", [lambda t: t[:-3], lambda t: t.replace(",1,", ",7,"), lambda t: t+t.splitlines()[1]+"\n", lambda t: t.replace("made", "mad"), lambda t: "x\n1\n", lambda t: ""])
def test_a_damaged_rater_file_is_refused_not_overwritten(task, damage):
    rate(task, "Ada", lambda r: 1); path = task.folder/"ratings-Ada.csv"; path.write_text(damage(path.read_text())); before = path.read_text()
    with pytest.raises(NecomimiError, match="ratings-Ada.csv"): begin(task, "Ada")
    assert path.read_text() == before

def test_agreement_against_a_plain_krippendorff(task):
    rng = np.random.default_rng(1); n = len(task.sheet); say = {k: rng.integers(0, 2, n) for k in "AB"}; say["C"] = np.where(rng.random(n) < .2, 1-say["A"], say["A"])
    for k, v in say.items(): rate(task, k, lambda r: int(v[r]))
    got = agreement(all_ratings(task)); m = np.stack([say[k] for k in "ABC"], 1)
    ones = m.sum(1); observed = (2*ones*(3-ones)/2).sum()/(3*n); yes = m.sum(); total = m.size; expected = 2*yes*(total-yes)/(total*(total-1))      # nominal alpha by hand
    assert abs(got.alpha["total"] - (1-observed/expected)) < 1e-9 and got.shared["total"] == n and list(got.index) == [*SLOTS, "total"]
    alike = agreement(all_ratings(task).query("rater == 'A'").pipe(lambda a: pd.concat([a, a.assign(rater="Z")]))); assert alike.alpha["total"] == 1 and alike.raw["total"] == 1
    alone = agreement(all_ratings(task).query("rater == 'A'")); assert np.isnan(alone.alpha["total"]) and alone.shared["total"] == 0
    assert np.isnan(agreement(all_ratings(task).assign(point=1)).alpha["total"])

def test_two_windows_of_one_rater_do_not_overwrite_each_other(task):
    a, b = CATRater(None, None, task.folder, "Ada"), CATRater(None, None, task.folder, "Ada"); a.act(dict(question=0, point=1)); mine = a.state.points.copy()
    b._heard(None, dict(question=1, point=0, turn=b.card.turn), []); assert "changed elsewhere" in b.message.value and begin(task, "Ada").points == mine
    b.begin(); assert b.state.points == mine; b.act(dict(question=1, point=0)); assert len(begin(task, "Ada").points) == 2

def test_a_panel_without_a_task_says_why_and_stays(tmp_path):
    p = CATRater(None, None, tmp_path/"none", "Ada"); assert "give pictures and tags" in p.message.value
    for b in (p.start, p.agree, p.out): b.click(); assert "no rating task" in p.message.value
    assert "give pictures" in CATRater(None, None, tmp_path/"none").static()

def test_messages_of_an_old_page_are_not_taken(task):
    p = CATRater(None, None, task.folder, "Ada"); p._heard(None, dict(question=0, point=1, turn=p.card.turn-1), []); assert p.state.points == {}
    p._heard(None, dict(question=0, point=1, turn=p.card.turn), []); assert len(p.state.points) == 1 and p.static().axes

# ------------------------------------------------------------------------------------------------ in JupyterLab
@pytest.fixture(scope="module")
def sheet(lab):
    with lab.open(SETUP + "from necomimi.widgets.cat import CATRater\nrater = CATRater(pictures, tags, 'task', 'Ada')", "rater", name="cat") as s:
        s.page.wait_for_function("document.querySelector('.jp-Notebook-ExecutionIndicator')?.dataset.status == 'idle'", timeout=120_000)
        s.page.wait_for_timeout(2500); yield s.run()                 # JupyterLab says idle a moment before a kernel just started takes work

def turned(p, change):
    "Does `change` and waits until the card shows another turn."
    old = p.get_attribute(".necomimi-card", "data-turn"); change()
    p.wait_for_function(f"() => document.querySelector('.necomimi-card').dataset.turn > {old}")

def says(p, text): p.wait_for_selector(f".necomimi-panel :text('{text}')")
def pressed(p, n): p.wait_for_function(f"() => document.querySelectorAll('.necomimi-question [aria-pressed=true]').length === {n}")

def read(sheet, name="Ada"): return pd.read_csv(sheet.path.parent/"task"/f"ratings-{name}.csv", dtype=str)

def test_keys_and_clicks_end_in_the_raters_file(sheet):
    p = sheet.page; p.wait_for_selector(".necomimi-card[data-turn] img[src]"); p.locator(".necomimi-card img").click()
    asked = p.locator(".necomimi-question b").all_inner_texts(); assert 6 <= len(asked) <= 10 and "secret" not in p.locator(".necomimi-card").inner_html()
    p.keyboard.press("y"); p.keyboard.press("n"); p.keyboard.press("ArrowDown"); p.keyboard.press("y"); p.wait_for_selector("text=3 of")
    p.locator(".necomimi-question").nth(2).locator(".no").click(); p.wait_for_selector("text=4 of")
    said = dict(zip(read(sheet).tag.map(plain), read(sheet).point))
    for k, v in ((0, "1"), (1, "0"), (2, "0"), (3, "1")): assert said[asked[k]] == v
    assert p.locator(".necomimi-question").nth(2).locator(".no").get_attribute("aria-pressed") == "true"

def test_the_last_question_brings_the_next_picture_and_backspace_takes_back(sheet):
    p = sheet.page; asked = p.locator(".necomimi-question").count(); src = p.get_attribute(".necomimi-card img", "src")
    turned(p, lambda: [p.keyboard.press("y") for _ in range(asked-4)]); says(p, "picture 2 of 4"); p.wait_for_function("was => document.querySelector('.necomimi-card img').src !== was", arg=src)
    assert len(read(sheet)) == asked; pressed(p, 0)
    turned(p, lambda: p.keyboard.press("Backspace")); says(p, "picture 1 of 4"); assert len(read(sheet)) == asked-1
    turned(p, lambda: p.keyboard.press("n")); says(p, "picture 2 of 4")
    turned(p, lambda: p.keyboard.press("ArrowLeft")); pressed(p, asked)
    turned(p, lambda: p.keyboard.press("ArrowRight")); p.keyboard.press("y"); p.keyboard.press("n"); p.wait_for_selector(f"text={asked+2} of")
    p.locator(".necomimi-card").evaluate("c => c.scrollIntoView()"); sheet.shot("CATRater")

def test_a_bad_name_is_a_message_and_a_second_rater_starts_fresh(sheet):
    p = sheet.page; name = p.locator(".necomimi-panel input[type=text]").first
    name.fill("../up"); p.click("button:has-text('Start or resume')"); p.wait_for_selector("[role=alert]:has-text('expected a rater')")
    turned(p, lambda: (name.fill("Ben"), p.keyboard.press("Tab"), p.click("button:has-text('Start or resume')")))
    p.wait_for_selector("text=welcome, Ben"); pressed(p, 0); says(p, "0 of")

def test_ben_rates_all_with_keys_then_agreement_export_and_score(sheet):
    p = sheet.page; p.locator(".necomimi-card").focus()
    for k in range(4):
        n = p.locator(".necomimi-question").count(); turned(p, lambda: [p.keyboard.press("y" if i % 3 else "n") for i in range(n)])
    p.wait_for_selector("text=thank you, Ben"); assert len(read(sheet, "Ben")) == len(pd.read_csv(sheet.path.parent/"task"/"ratings.csv"))
    p.click("button:has-text('Agreement')"); p.wait_for_selector("text=Krippendorff's alpha"); both = pd.concat([read(sheet), read(sheet, "Ben")]).astype(dict(point=int))
    eventually(p, lambda: f"{agreement(both).alpha['total']:.2f}" in p.locator(".necomimi-note").inner_text() and "Ada" in p.inner_text(".necomimi-panel table + p"))
    p.click("button:has-text('Export')"); p.wait_for_selector("text=all-ratings.csv")
    score = cat_score(None, tags, HumanJudge(sheet.path.parent/"task"/"all-ratings.csv", sheet.path.parent/"task-key.csv"))
    assert score.protocol["notes"]["raters"] == 2 and sheet.python("from necomimi.cat import cat_score\nprint(cat_score(None, tags, rater.judge()).total)") == str(score.total)

def test_resuming_a_missing_picture_and_the_console(sheet):
    p = sheet.page; name = p.locator(".necomimi-panel input[type=text]").first; before = len(read(sheet))
    sheet.python("gone = begin_at = [p for p in rater.task.folder.glob('*.png')]\nfor p in gone: p.rename(p.with_suffix('.away'))")
    turned(p, lambda: (name.fill("Ada"), p.keyboard.press("Tab"), p.click("button:has-text('Start or resume')")))
    p.wait_for_selector("[role=alert]:has-text('missing or cannot be read')"); pressed(p, 2); says(p, f"{before} of")
    sheet.python("for p in gone: p.with_suffix('.away').rename(p)"); p.locator(".necomimi-card").focus()
    turned(p, lambda: p.keyboard.press("ArrowRight")); p.wait_for_selector(".necomimi-card img[src]")
    assert "Traceback" not in p.inner_text(".jp-Notebook") and sheet.errors == []

def test_it_fits_a_narrow_page(sheet):
    p = sheet.page; p.set_viewport_size(dict(width=800, height=1000)); p.wait_for_timeout(500)
    box = p.evaluate("() => { const c = document.querySelector('.necomimi-panel'), r = c.getBoundingClientRect(); return [c.scrollWidth - c.clientWidth, r.right - innerWidth] }")
    sheet.shot("CATRater-800") if "NECOMIMI_NARROW" in os.environ else None
    assert box[0] <= 1 and box[1] <= 0
