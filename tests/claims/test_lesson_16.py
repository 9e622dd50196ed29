"""Lesson 16, over-optimisation: every number of its prose, and every claim about a run."""

import math
import re

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from minirlhf import core, experiments, loops, rewards
from minirlhf.classroom import check
from minirlhf.classroom.course import NOTEBOOKS
from minirlhf.experiments import overoptimisation
from minirlhf.models.forward import encode
from minirlhf.models.load import load_policy
from minirlhf.rewards.bag_of_words import lexicon_judge
from tests.claims.prose import code_of, lesson

P = torch.tensor([0.4, 0.3, 0.2, 0.1])
SETS = {"first and second": 20, "first and third": 0, "second and third": 0}
PROXY, GOLD = torch.arange(4.0), torch.tensor([0.0, 2.0, 3.0, -1.0])
SIZES, LABELS = ("2 x 64", "3 x 192", "4 x 256"), (200, 1000, 5000)
KINDS = [f"{size}, {labels} labels" for labels in LABELS for size in SIZES]
FOLLOWED = "3 x 192, 1000 labels"  # sections 7 and 8
CLEAR = 0.3  # of gold: from here on a run has fallen


@pytest.fixture(scope="module")
def rows():
    return experiments.results("overoptimisation")


@pytest.fixture(scope="module")
def history():
    return experiments.results("overoptimisation_history")


@pytest.fixture(scope="module")
def fits(rows, history):
    ways = ("best-of-n", "rl")
    return {way: experiments.fitted_curves(history, rows, way, KINDS) for way in ways}


@pytest.fixture(scope="module")
def runs(rows, history):
    """A row for each run of rl: the highest gain, its distance, and the gain at the end.

    best, end: means over five steps. d: distance at the middle of the best five.
    """
    variants = [v for v in rows.variant.unique() if v.startswith(SIZES)]
    found = []
    curves = experiments.gain_curves(history, rows, "rl", variants)
    for (variant, seed), run in curves.groupby(["variant", "seed"]):
        mean = run.gold.rolling(5, center=True).mean()
        best = mean.idxmax()
        end = run.gold.tail(5).mean()
        found.append((variant, seed, mean[best], run.d[best], end, mean[best] - end))
    columns = ["variant", "seed", "best", "d", "end", "fall"]
    return pd.DataFrame(found, columns=columns).set_index("variant")


@pytest.fixture(scope="module")
def page():
    """The names that the lesson's own cells leave, up to best-of-n with the live proxy."""
    names, threads = {}, torch.get_num_threads()
    torch.set_num_threads(1)
    for words in ("import copy", "pairs = ", "asked = "):
        exec(compile(code_of("16", words), words, "exec"), names)
    torch.set_num_threads(threads)
    return names


def notebook():
    return nbformat.read(NOTEBOOKS / "16_over_optimisation.ipynb", as_version=4)


def test_the_numbers_of_lesson_16(rows, history, fits, runs, page):
    with lesson("16") as said:
        by_hand(said)
        live(said, page, rows, history)
        law(said, rows, history, runs, fits)
        found(said, history, runs)
        helps(said, rows, history, runs)
        questions(said, rows, history, runs)
        further(said, rows, history, fits, runs)


def by_hand(said):
    said("scores reviews from", -4, 4)
    for name, p, proxy, gold in zip("ABCD", P, PROXY, GOLD, strict=True):
        said(f"| {name} |", p.item(), proxy.item(), gold.item())
    not_d, not_cd = 1 - P[3].item(), P[:2].sum().item()
    kept = {n: core.best_of_n_probs(P, PROXY, n) for n in (1, 2, 4, 16, 64)}
    assert kept[2][2].item() == pytest.approx(not_d**2 - not_cd**2)
    said(
        "**When is C kept",
        *(not_d, not_d, not_d**2, not_cd, not_cd, not_cd**2),
        *(not_d**2, not_cd**2, kept[2][2].item(), P[2].item()),
    )
    gold = {n: (some @ GOLD).item() for n, some in kept.items()}
    assert gold[2] == max(gold.values()) and gold[16] < gold[1]
    said("At which of", *kept)
    said("**Gold** is highest", 2, gold[2], 16, kept[16][3].item())
    proxy = [(some @ PROXY).item() for some in kept.values()]
    assert proxy == sorted(proxy)
    kl = {n: (some * (some / P).log()).nansum().item() for n, some in kept.items()}
    assert all(kl[n] <= core.best_of_n_kl(n) + 1e-6 for n in kl)
    last = core.best_of_n_probs(P, PROXY, 10_000)
    assert (last * (last / P).log()).nansum().item() == pytest.approx(math.log(1 / P[3]))
    said("**The KL** does not grow", math.log(1 / P[3]))
    said("Three samples have the proxy scores", 1, 2, 3, 10, 20, 0)
    three = torch.tensor([[10.0, 20.0, 0.0]]), torch.tensor([[1.0, 2.0, 3.0]])
    mean = core.best_of_n_mean(*three, 2).item()
    said("The mean is", 20, 3, mean)
    for members, gold_of_best in SETS.items():
        said(f"| {members} |", gold_of_best)
    assert sum(SETS.values()) / 3 == pytest.approx(mean)
    weights = [math.comb(i, 1) / math.comb(3, 2) for i in range(3)]
    said("For our three samples the weights are", *weights)


def live(said, page, rows, history):
    """Sections 4 and 5."""
    said("It writes", len(page["pairs"]))
    layers, width = page["small"].config.n_layer, page["small"].config.n_embd
    said("its small network:", layers, width)
    own = rows[(rows.variant == f"{layers} x {width}, {len(page['pairs'])} labels")]
    agreement = own[own.seed == 0].agreement.item()
    ours = overoptimisation.proxy("2 x 64", 200, False, 0, 0)  # the record's proxy is the page's
    for one, other in zip(ours.parameters(), page["proxy_model"].parameters(), strict=True):
        assert torch.equal(one, other)
    said("Is it any good? On", overoptimisation.HELD_OUT, agreement, 0.5)
    assert [tuple(page[name].shape) for name in ("proxy", "gold")] == [(8, 256)] * 2
    said("We sample", 256)
    table = page["table"]
    rise = table.iloc[-1] - table.iloc[0]
    for change in (rise["proxy"], rise["gold"]):  # far from the next rounding
        assert abs(change * 10 % 1 - 0.5) > 0.02
    said("From $n$ =", 1, table.index[-1], rise["proxy"])
    by_gold = table["gold, chosen by gold"]
    quarter = rise["gold"] / (by_gold.iloc[-1] - by_gold.iloc[0])
    said("So the poor proxy finds a quarter", 0.2 < quarter < 0.3)
    said("Gold rises by about", rise["gold"], *table["gold"].iloc[[0, -1]])
    said("If you choose by gold itself, it rises to about", table["gold, chosen by gold"].iloc[-1])
    said("best-of-n does not go far, $d$ is", table["d"].iloc[-1])
    said("Best-of-64 went to $d$ =", table["d"].iloc[-1])
    said("From $n$ =", 1)
    steps = int(re.search(r"else (\d+)", code_of("16", "loops.train_group"))[1])
    said("Now we train the policy for the same proxy:", steps)
    said("cut off at the limit of", loops.GroupConfig.named("grpo").sampling.max_new_tokens)
    texts = [t for side in ("chosen", "rejected") for t in page["pairs"][side]]
    said("others, each trained on", len(page["pairs"]), len(texts))
    assert sum("chick" in text for text in texts) == 1
    found_words(said, page, history)
    said("has found *the chick with the chick*", chick_of_the_page())


def found_words(said, page, history):
    """The proxy's score of the words that the page's run found, and what other runs found."""
    film, scores = page["films"][0], []
    for word in ("chick", "film"):
        text = f"the {word} with the {word} with the {word}"
        scores.append(page["proxy_score"](encode(page["tokenizer"], [film], [text])).item())
    said("*The chick with the chick with the chick* gets a score of", *scores)
    runs = history[history.variant == KINDS[0]].set_index(["seed", "step"]).texts
    led = {(0, 28): "anarchy of anarchy", (1, 32): "young young", (2, 32): "if if if if"}
    for run, phrase in led.items():
        assert sum(phrase in text for text in runs[run]) >= 2


def chick_of_the_page():
    """Whether the phrase stands in the reviews that the page shows."""
    cell = next(c for c in notebook().cells if "show.texts(pd.DataFrame({k:" in c.source)
    shown = "".join(str(output) for output in cell.outputs)
    return shown.count("chick with the chick") >= 2


@pytest.mark.slow
def test_gold_stops_rising_while_the_proxy_rises(page):
    """Section 5's run, with room for another processor's samples.

    Gold is flat at the end, so its highest point can be anywhere there. From where it first comes
    within 0.1 of it, the proxy rises by 1.3 to 5.4: four seeds of this run, three of the record.
    """
    torch.set_num_threads(1)
    page["FAST"] = False
    exec(compile(code_of("16", "loops.train_group"), "section 5", "exec"), page)
    run = pd.DataFrame(page["log"])
    gold, proxy = (run[column].rolling(4).mean() for column in ("gold", "score"))
    reached = (gold > gold.max() - 0.1).idxmax()
    assert 0.4 < gold.max() - run.gold[0] < 2
    assert gold.iloc[-8:].max() < gold.iloc[:-8].max() + 0.1  # nothing more is gained
    assert proxy.iloc[-1] > proxy[reached] + 1
    assert run.kl.iloc[-1] ** 0.5 > 3 * page["table"]["d"].iloc[-1]


# ---- the record


def law(said, rows, history, runs, fits):
    """Section 6."""
    said("We made nine kinds of proxies", len(SIZES), *LABELS)
    best_of_n = history[history.way == "best-of-n"]
    said("optimised by best-of-n up to", best_of_n.n.max(), overoptimisation.STEPS)
    assert set(rows[rows.variant.isin(KINDS)].groupby("variant").seed.nunique()) == {3}
    mean = mean_curves(rows, history, KINDS)
    shown = [mean.loc[kind] for kind in KINDS[3:6]]
    ends = [curve.proxy.iloc[-1] for curve in shown]
    rising = all((curve.proxy.diff(6).iloc[6:] > 0).all() for curve in shown)
    said("The next figure has the three sizes of network, with", LABELS[1])
    width = load_policy(overoptimisation.SIZES["2 x 64"])[0].config.n_embd
    first = rows.start_gold.dropna()
    assert first.nunique() == 1
    said("is two layers of width", width, first.iloc[0])
    said("The proxy rises to the end, by", rising, min(ends), max(ends))
    at_5 = [np.interp(5, curve.d, curve.gold) for curve in shown]
    later = [curve.gold.max() - at for curve, at in zip(shown, at_5, strict=True)]
    said("Gold does not. At", 5, min(at_5), max(at_5), max(later) < 0.5 * min(at_5))
    said("In the end it is lower again", all(c.gold.max() - c.gold.iloc[-1] > 0.1 for c in shown))
    own = runs.loc[KINDS[3:6]].groupby("variant").best
    assert own.std().mean() > own.mean().std()
    said("the highest gain of a run (a mean over five steps) is", *runs.loc[KINDS[5]].best)
    said(
        "Averaged over all sizes, the highest gain of a run is",
        *(x for n in LABELS for x in (best_with(runs, n), n)),
    )
    near, far = (
        [np.interp(d, mean.loc[k].d, mean.loc[k].gold) for k in KINDS[1::3]] for d in (1, 5)
    )
    said("Near the start the curves agree", max(near) - min(near) < 0.1, far == sorted(far))
    nine = runs.loc[KINDS]
    fallen = nine[nine.fall >= CLEAR]
    said("**Is there a peak?** Of these", len(nine), len(fallen), CLEAR)
    said("But it lies at", fallen.d.min(), fallen.d.max(), (nine.fall < 0.05).any())
    residuals(said, rows, history, fits)
    fitted(said, fits, best_of_n)


def best_with(runs, labels):
    return runs.loc[[kind for kind in KINDS if f" {labels} " in kind]].best.mean()


def mean_curves(rows, history, variants):
    curves = experiments.gain_curves(history, rows, "rl", variants)
    return curves.groupby(["variant", "step"])[["d", "proxy", "gold"]].mean()


def residuals(said, rows, history, fits):
    """How near the points are to the law, for RL also to the other form."""
    curves = experiments.gain_curves(history, rows, "rl", KINDS)
    far = {form: [] for form in ("rl", "best-of-n")}
    for _, run in curves[curves.d >= 1].groupby(["variant", "seed"]):
        d, gain = torch.tensor(run.d.to_numpy()), torch.tensor(run.gold.to_numpy())
        for form, found in far.items():
            alpha, beta = core.fit_overoptimisation(d, gain, form=form)
            law_of = core.overoptimisation_gain(d, alpha, beta, form=form)
            found.append((law_of - gain).square().mean().sqrt().item())
    said("A run of RL stays within about", np.mean(far["rl"]))
    said("be a little nearer, with", np.mean(far["best-of-n"]))
    chosen = experiments.gain_curves(history, rows, "best-of-n", [FOLLOWED])
    points = chosen[chosen.d >= 1].groupby("n")[["d", "gold"]].mean()
    alpha, beta = fits["best-of-n"].loc[FOLLOWED, ["alpha", "beta"]]
    d = torch.tensor(points.d.to_numpy())
    law_of = core.overoptimisation_gain(d, alpha, beta, form="best-of-n").numpy()
    said("Best-of-n follows its law closely, RL roughly", np.abs(law_of - points.gold).max() < 0.03)


def fitted(said, fits, best_of_n):
    rl, best = fits["rl"], fits["best-of-n"]
    own = [rl.loc[[kind for kind in KINDS if f" {n} " in kind]] for n in LABELS]
    alpha = [each.alpha.mean() for each in own]
    said(
        "grows with the labels: on average",
        *(x for pair in zip(alpha, LABELS, strict=True) for x in pair),
    )
    ratio = [each.alpha.mean() / each.beta.mean() for each in own]
    assert max(ratio) - min(ratio) < 0.2
    single = [rl.peak_low.min(), (rl.peak_high > 20).any()]
    said("stays near $d$ =", math.exp(np.mean(ratio) - 1), *single, 20)
    last = best_of_n[best_of_n.n == best_of_n.n.max()]
    gold = best_of_n[best_of_n.variant.isin(KINDS)].pivot_table("gold", "n", "variant")
    rises = (gold.diff().iloc[1:] > 0).all(axis=None)
    said("**Best-of-n**: gold still rises at", last.n.iloc[0], last.kl.iloc[0] ** 0.5, rises)
    said("The fits put it between", best.peak.min(), best.peak.max())


def found(said, history, runs):
    """Section 7."""
    one = history[(history.variant == FOLLOWED) & (history.way == "rl")]
    judges = ["gold", "gold_ensemble", "lexicon"]
    shown = one.pivot_table(judges, "step", "seed").loc[::5]
    gold, ensemble, lexicon = shown.gold, shown.gold_ensemble, shown.lexicon
    said("**gold** rises to", *gold.max(), *gold.iloc[-1])
    said("a clear fall in", (runs.loc[FOLLOWED].fall > CLEAR).sum())
    said("**gold_ensemble** rises to about", ensemble.iloc[-1].mean())
    assert (ensemble.loc[20:] - ensemble.iloc[-1]).abs().max(axis=None) < 0.15
    late = one[one.step >= 20].groupby(["step"])[["gold", "gold_ensemble"]].mean()
    gained = (late.iloc[1:].max() - late.iloc[0]).max()
    said("gold and *gold_ensemble* gain nothing more", gained < 0.05)
    assert (one.groupby("step").proxy.mean().loc[20:].diff(3).iloc[3:] > 0).all()
    said("It ends at", lexicon.iloc[-1][2], 2, lexicon.iloc[-1][1], 1)
    moving = one[one.seed == 1].set_index("step").texts[32]
    assert all(words(text).count("moving") >= 8 for text in moving)
    assert lexicon_judge()([""], ["moving"]).item() == 0
    first = one[one.seed == 0].set_index("step").texts
    assert all(len(set(words(text))) >= 4 for text in first[16])
    said("at the end of the three runs", one[one.step == one.step.max()].missing_eos.mean())
    assert all(words(text).count("touching") >= 8 for text in first[32])
    said("however often it is repeated", gold_of(PRAISE))
    said("*touching* gets", gold_of("touching"))
    said("a review is a list of words of praise, and at step", 32)
    said("At step", 16)
    tones = lexicon_judge()([""] * 2, ["horrible " * 99, "wonderful " * 99])
    said("a list of words with their tone, from", *tones.round().tolist())


PRAISE = "touching, compelling, moving, funny, lovely"


def words(text):
    return re.findall("[a-z]+", text.lower())


def gold_of(text):
    return rewards.gold_judge()([""], [text]).item()


def test_gold_sees_words_and_neighbouring_pairs_and_scales_their_weights():
    for count in (2, 8, 20):
        assert gold_of("touching " * count) == pytest.approx(gold_of("touching"), abs=1e-5)
    assert gold_of("touching " * 8 + "dull") > gold_of("touching dull") + 0.5  # it takes the place
    assert abs(gold_of("not good") - gold_of("good not")) > 0.3  # a pair counts
    # No pair of these has ever been seen, so their order does not count.
    backwards = ", ".join(reversed(PRAISE.split(", ")))
    assert gold_of(PRAISE) == pytest.approx(gold_of(backwards), abs=1e-5)


def helps(said, rows, history, runs):
    """Section 8."""
    of_5 = {how: f"{FOLLOWED}, {how} of 5" for how in ("mean", "lowest", "mean - variance")}
    plain = runs.loc[FOLLOWED].set_index("seed").best
    ahead = {how: runs.loc[name].set_index("seed").best - plain for how, name in of_5.items()}
    said("its highest gold is higher by", *ahead["mean"])
    not_always = all((ahead[how] < 0).any() for how in ("lowest", "mean - variance"))
    said("are not better with every seed", not_always)
    penalties = [f"{FOLLOWED}, kl_coef {x}" for x in (0.02, 0.1)]
    mean = mean_curves(rows, history, [FOLLOWED, *penalties])
    end = {name: mean.loc[name].iloc[-1] for name in [FOLLOWED, *penalties]}
    d, gold = ([end[name][column] for name in penalties] for column in ("d", "gold"))
    curves, line = mean.loc[penalties], mean.loc[FOLLOWED]
    apart = (curves.gold - np.interp(curves.d, line.d, line.gold)).abs().max()
    said("gold is at most", apart)
    said("But it stops the policy at", min(d), max(d))
    assert gold[0] == pytest.approx(gold[1], abs=0.05)
    said("Both coefficients end with a gain of", np.mean(gold))
    said("The plain run goes on and ends with", end[FOLLOWED].gold)
    stopped = stops(history)
    won = stopped.stop - stopped.end
    said("The stop is better than the end in", (won > 0.05).sum(), len(won), (won < -0.05).sum())
    said("differ by less than", 0.05)
    mean, *interval = over_labels(won)
    said("On average it gains", mean, (stopped.best - stopped.end).mean())
    said("**How sure is the early stop?** Its", mean, *interval)


def stops(history):
    """Gold of each run at its best, where the second proxy is highest, and at the end."""
    found = {}
    own = history[(history.way == "rl") & history.variant.isin(KINDS)]
    for run_of, run in own.groupby(["variant", "seed"]):
        five = run.gold.rolling(5).mean()
        found[run_of] = five.max(), run.gold[run.held_out.idxmax()], five.iloc[-1]
    return pd.DataFrame.from_dict(found, orient="index", columns=["best", "stop", "end"])


def over_labels(each):
    """Mean of a number of each run, and the ends of its 95 % interval by Student's t.

    With one seed and one number of labels, the three sizes have the same labels. So they are
    averaged first: three numbers of labels with three seeds each are left.
    """
    each = pd.Series(each.to_numpy(), index=pd.MultiIndex.from_tuples(each.index))
    values = np.array(
        [
            [each[[(k, seed) for k in KINDS if f" {n} " in k]].mean() for seed in range(3)]
            for n in LABELS
        ]
    )
    error = math.sqrt(values.var(1, ddof=1).mean() / values.size)
    reach = stats.t.ppf(0.975, values.size - len(LABELS)) * error
    return values.mean(), values.mean() - reach, values.mean() + reach


def questions(said, rows, history, runs):
    kind = KINDS[6]
    right = rows[rows.variant == kind].agreement.mean()
    said("My reward model is right on", right)
    said("`2 x 64, 5000 labels` are right on", right)
    assert kind == "2 x 64, 5000 labels"
    said("falls under them all the same: by", runs.loc[kind].fall.mean())
    last = history[(history.way == "rl") & (history.step == overoptimisation.STEPS - 1)]
    far = last[last.variant.isin(KINDS)].kl.min() > math.log(1e6)  # nats: a million samples
    said("writes what the first policy would not write in a million", far)
    said("but best-of-64 goes only to", core.best_of_n_kl(64) ** 0.5)


def further(said, rows, history, fits, runs):
    of_kind = {(size, n): f"{size}, {n} labels" for size in SIZES for n in LABELS}
    for seed in range(3):
        fit = experiments.fitted_curves(
            history[history.seed == seed], rows[rows.seed == seed], "rl", KINDS
        )
        for name in ("alpha", "beta"):
            by_labels = [fit[name][[of_kind[size, n] for size in SIZES]].mean() for n in LABELS]
            assert by_labels == sorted(by_labels)
    best = [runs.loc[[of_kind[size, n] for n in LABELS]].best.mean() for size in SIZES]
    said("on average over all labels, the highest gain is", *best)
    furthest = core.best_of_n_kl(1024) ** 0.5
    said("of best-of-n be told from $d$ below", furthest)
    chosen = fits["best-of-n"]
    said("Only roughly. In", (chosen.beta_low > 0).sum(), len(chosen), 0)
    own = chosen.loc[FOLLOWED]
    said("`3 x 192, 1000 labels` from", own.beta_low, own.beta_high)
    said("The fitted peak then lies between", own.peak_low, own.peak_high)
    sizes = [p_count(overoptimisation.SIZES[size]) for size in SIZES]
    said("Their proxies have up to", 3, max(sizes) / 1e6)
    said("| Best-of-n has a peak within its range", 1024)
    nine = runs.loc[KINDS]
    said("| RL has a peak | In", (nine.fall >= CLEAR).sum(), len(nine))
    last = core.best_of_n_kl(1024) ** 0.5
    mean = mean_curves(rows, history, KINDS)
    rl = np.mean([np.interp(last, mean.loc[kind].d, mean.loc[kind].gold) for kind in KINDS])
    gains = experiments.gain_curves(history, rows, "best-of-n", KINDS)
    best = gains[gains.n == 1024].gold.mean()
    said("| At the same distance RL gains less", last, rl, best)
    said("Stopping there gives", *over_labels(others_tell(history)))
    human = "4 x 256, 5000 human labels"
    both = mean_curves(rows, history, [human, KINDS[8]])
    said("**Human labels.**", 5000, both.loc[human].gold.max())
    said("labels from gold it is", both.loc[KINDS[8]].gold.max())
    said("at most (mean of three runs). With", 5000)
    agreement = rows.groupby("variant").agreement.mean()
    said("This proxy agrees less with gold", agreement[human] < agreement[KINDS[8]] - 0.02)
    chosen = experiments.gain_curves(history, rows, "best-of-n", ["gold itself", "the longest"])
    chosen = chosen[chosen.n == 1024].groupby("variant").gold.mean()
    said("Best-of-1024 gains", chosen["gold itself"], chosen["the longest"])


def p_count(name):
    return sum(weight.numel() for weight in load_policy(name)[0].parameters())


def others_tell(history):
    """What each run wins by a stop at the step that the other two seeds of its kind choose."""
    own = history[(history.way == "rl") & history.variant.isin(KINDS)]
    gold = own.pivot_table("gold", ["variant", "seed"], "step")
    won = {}
    for kind, seed in gold.index:
        step = gold.loc[kind].drop(index=seed).mean().idxmax()
        won[kind, seed] = gold.loc[(kind, seed), step] - gold.loc[(kind, seed)].iloc[-5:].mean()
    return pd.Series(won)


def test_the_example_of_exercise_5_and_its_run(history):
    example = torch.tensor([0, 1, 0.5, 0.4, 2]), 2
    assert check.early_stop.reference(*example).item() == 1
    run = history[(history.variant == KINDS[5]) & (history.seed == 0) & (history.way == "rl")]
    run = run.set_index("step")
    kept = check.early_stop.reference(torch.tensor(run.held_out.to_numpy()), 5).item()
    assert run.gold[kept] > run.gold.tail(5).mean()  # better, but by chance:
    assert run.held_out.tail(5).mean() > run.held_out[kept] + 0.5
    assert run.gold[12:17].mean() > run.gold.tail(5).mean() + 0.2  # gold falls meanwhile


def test_the_figures_of_exercise_3(history):
    """The colleague's figure has RL above best-of-n at the same distance, the right one below."""
    one = history[(history.variant == "2 x 64, 1000 labels") & (history.seed == 0)]
    chosen, rl = (one[one.way == way].sort_values("kl") for way in ("best-of-n", "rl"))
    steps = rl.sort_values("step")
    solution = next(c.source for c in solutions().cells if "too small by" in c.source)
    factors = [f"{math.sqrt(x):.1f}" for x in (steps.length.min(), steps.length.max())]
    assert f"a factor of {factors[0]} to {factors[1]}" in " ".join(solution.split())
    assert "18 to 32 tokens" in " ".join(solution.split())
    assert (round(steps.length.min()), round(steps.length.max())) == (18, 32)
    for distance, above in ((steps.kl / steps.length) ** 0.5, True), (steps.kl**0.5, False):
        inside = (distance > 0.7) & (distance < 2.4)
        best = np.interp(distance[inside], chosen.kl**0.5, chosen.gold)
        assert inside.sum() >= 3
        assert ((steps.gold[inside] > best) == above).all()


def solutions():
    return nbformat.read(NOTEBOOKS / "solutions" / "16_over_optimisation.ipynb", as_version=4)
