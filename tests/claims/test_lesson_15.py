"""Lesson 15, an agent with a tool: every number of its prose, and every claim about a run."""

import ast
import copy
import math
from dataclasses import replace
from types import SimpleNamespace

import nbformat
import pytest
import torch

from minirlhf import core, experiments, loops, models, rewards, tasks
from minirlhf.classroom.course import NOTEBOOKS
from minirlhf.experiments import multi_turn
from minirlhf.experiments.agent import ASKED, SAMPLING, TRIES, written_by_policy
from minirlhf.experiments.multi_turn import (
    ITERATIONS,
    PROMPTS,
    REFRESH,
    SAMPLES,
    multi_turn_config,
)
from minirlhf.experiments.registry import ERRS
from tests.claims.agent_15 import (
    brackets,
    example_of_section_1,
    responses_of_section_2,
    scope_of_the_step,
)
from tests.claims.prose import lesson

RIGHT, COST, BETA = 0.8, 0.1, 0.2
METHODS = ("dpo", "kto", "grpo")
STEPS = 36  # of the two runs of section 5
# Section 5, means of the last six steps, by masked, and how exact its page's "about" is.
AT_THE_END = {
    "loss": ({True: 0.6, False: 0.3}, 0.05),
    "right": ({True: 0.75, False: 0.5}, 0.05),
    "policy": ({True: 1.5, False: 0.5}, 0.3),
    "tool": ({True: -3, False: 15}, 1.5),
}


@pytest.fixture(scope="module")
def world():
    return core.ToolWorld.two_tools(right=RIGHT, cost=COST)


@pytest.fixture(scope="module")
def agent():
    return models.load_policy("tiny-agent")


@pytest.fixture(scope="module")
def runs():
    runs = experiments.results("multi_turn")
    runs["own"] = runs.margin - runs.margin_on_tool
    runs["calls"] = 1 - runs["no call"]
    runs["right numbers"] = runs["right call"] / runs.calls
    assert sorted(set(runs.seed)) == [0, 1, 2]
    return runs.set_index(["variant", "seed"]).sort_index()


def errs(variant):
    return f"{variant}; the tool errs"


def mean(runs, variant, column):
    return runs.loc[variant][column].mean()


# ---- the record


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("with_errors", [False, True])
def test_the_mask_pays_on_every_seed(runs, method, with_errors):
    with_mask, without = method, f"{method}, no mask"
    if with_errors:
        with_mask, without = errs(with_mask), errs(without)
    gap = runs.loc[with_mask].pass_1 - runs.loc[without].pass_1
    assert (gap > 0.08).all()
    frame = runs.reset_index()
    difference = experiments.difference_over_prompts_and_seeds
    found = difference(frame, "pass_1", without, with_mask).iloc[0]
    assert found.low > 0.05


def test_without_the_mask_the_margin_lies_on_the_tool(runs):
    for method in METHODS:
        row = runs.loc[f"{method}, no mask"]
        assert (row.margin_on_tool / row.margin > 0.93).all()
        assert (runs.loc[method].own > 1.5 * row.own).all()


@pytest.mark.parametrize("method", METHODS)
def test_without_the_mask_the_policy_learns_to_call_and_not_to_copy(runs, method):
    """Calls rise on every seed, and rise more with the mask; right numbers rise only with it."""
    start, masked, bare = (runs.loc[name] for name in ("start", method, f"{method}, no mask"))
    assert (bare.calls > start.calls + 0.1).all()
    assert (masked.calls > bare.calls + 0.03).all()
    assert (masked["right numbers"] > start["right numbers"] + 0.08).all()
    assert bare["right numbers"].mean() < start["right numbers"].mean()


def test_the_accuracy_of_each_iteration_is_recorded():
    history = experiments.results("multi_turn_history")
    for _, run in history.groupby(["variant", "seed"]):
        steps = run.step.tolist()
        assert steps in ([0], [REFRESH * i for i in range(ITERATIONS + 1)])
        for right, (low, high) in zip(run.right, run["right, interval"], strict=True):
            assert low <= right <= high


def test_learning_from_an_erring_tool_costs_all_methods_alike(runs):
    """Errors change GRPO's lead over DPO by less than 0.01, and right calls by less than 0.02."""
    lead = runs.loc["grpo"].pass_1 - runs.loc["dpo"].pass_1
    with_errors = runs.loc[errs("grpo")].pass_1 - runs.loc[errs("dpo")].pass_1
    assert abs(lead.mean() - with_errors.mean()) < 0.01
    for method in METHODS:
        calls = [runs.loc[name]["right call"].mean() for name in (method, errs(method))]
        assert abs(calls[0] - calls[1]) < 0.02


# ---- the numbers of the prose


def test_the_numbers_of_lesson_15(world, agent, runs):
    with lesson("15") as said:
        example(said)
        turns(said, agent, runs)
        luck(said, world)
        policies(said, world)
        step(said)
        iterations(said, runs)
        unreliable(said, runs)
        exercises(said, world)
        said("no mask for single turns")
        opening, closing = brackets(agent)
        said("gives the tool's `{` about", -13, abs(opening + 13) < 1.5)
        said("nats and its `}` about", -10, abs(closing + 10) < 1.5)


def example(said):
    log_ratio, counts, rejected, table = example_of_section_1()
    said("| $\\log \\pi - \\log \\pi_{\\text{ref}}$ |", *log_ratio)
    said("| $m_t$ |", *counts)
    chosen = sum(log_ratio[counts == 1])
    tools = sum(log_ratio[counts == 0])
    losses = [
        math.log1p(math.exp(-0.1 * h)) for h in (chosen - rejected, chosen + tools - rejected)
    ]
    said("The policy's tokens add up to", chosen, tools, rejected, chosen, -rejected)
    said("So $\\Delta h$ is", chosen, -rejected, chosen - rejected, losses[0])
    said("Then the tool's", tools, chosen + tools - rejected, losses[1])
    assert table.loss.tolist() == pytest.approx(losses)


def turns(said, agent, runs):
    said("**action mask** $m_t$ is", 1, 0)
    said("is a GPT-2 of", agent[0].num_parameters() / 1e6)
    said("tiny-agent calls the calculator in", mean(runs, "start", "calls"))
    said("Products are too hard for its head: only", mean(runs, "start", "in_the_head"))
    said("The score is a rule:", 1, 0, *responses_of_section_2())


def luck(said, world):
    for answer in ("{3901}3906", "{3981}3986"):  # section 3
        right = tasks.calculator.answer_of(f"[47*83]{answer}") == 47 * 83 + 5
        said(f"| `[47*83]{answer}` |", float(right))
    said("give the rest probability", 1, math.log(1 / 1))
    start, q, values = world.optimal_values(beta=BETA)
    right, wrong = values[0].tolist()
    fast, slow = q.tolist()
    said("The *fast* tool is right in", RIGHT, COST, 1, -1, 0)
    # by hand, from the formulas of the page
    assert right == pytest.approx(0.2 * math.log(0.5 * math.exp(5) + 0.5))
    assert wrong == pytest.approx(0.2 * math.log(0.5 * math.exp(-5) + 0.5))
    said("| fast tool, right |", 1, 0, right)
    said("| fast tool, wrong |", -1, 0, wrong)
    said("| slow tool, right |", 1 - COST, -COST, COST, values[1, 0].item())
    said("*Before the result*", fast, slow)
    said("Now $Q$ stands where $r$ stood:", start.item())
    both = 0.5 * math.exp(fast / BETA) + 0.5 * math.exp(slow / BETA)
    assert start.item() == pytest.approx(BETA * math.log(both))
    assert fast == pytest.approx(0.8 * right + 0.2 * wrong)
    assert slow == pytest.approx(values[1, 0].item()) == pytest.approx(right - 0.1)
    assert start == pytest.approx(world.objective(*world.optimum(beta=BETA), beta=BETA).item())
    term = world.transition_term(beta=BETA)
    assert term[0].tolist() == pytest.approx([right - fast, wrong - fast])
    # beta h* = r - V_0 - term
    h = world.log_ratio(*world.optimum(beta=BETA))
    assert torch.allclose(BETA * h, world.rewards - start - term[..., None], atol=1e-10)
    # reward minus penalty is V, for every action
    second = world.optimum(beta=BETA)[1] - world.ref_second.log_softmax(-1)
    assert torch.allclose(world.rewards - BETA * second, values[..., None].expand_as(second))


def policies(said, world):
    best, masked = world.optimum(beta=BETA), world.masked_optimum(beta=BETA)
    calls = [first[0].exp().item() for first, _ in (masked, best)]
    said("the *call* is nearly right:", *calls)
    small = {  # of the two probabilities after a result, the smaller one, by policy
        "right": [p[1][0, 0, 1].exp().item() for p in (best, masked)],
        "wrong": [p[1][0, 1, 0].exp().item() for p in (best, masked)],
    }
    said("result DPO says *I do not know* in", *small["right"][::-1])
    said("DPO passes on a wrong result in", *small["wrong"][::-1])
    lucky = world.transition_term(beta=BETA)[0].tolist()
    said("What is missing for a result is its luck,", *lucky, 1, 1)
    rows = {"| right | *I do not know* |": "right", "| wrong | passing on |": "wrong"}
    for (row, result), term in zip(rows.items(), lucky, strict=True):
        at_best, at_dpo = small[result]
        factor = math.exp(term / BETA)
        said(row, at_best, factor, at_best * factor)
        # "asked for" is nearly what masked DPO has: the other probability hardly moves
        assert at_dpo == pytest.approx(at_best * factor, rel=0.12)
    # the call has the mean of the two demands: Q, up to the constant
    shift = [BETA * (first - world.ref_first.log_softmax(0)) for first, _ in (masked, best)]
    assert abs((shift[0][0] - shift[0][1]) - (shift[1][0] - shift[1][1])) < 0.005
    lost = []  # with DPO's actions after a right or a wrong result only
    for result in (0, 1):
        one = best[1].clone()
        one[0, result] = masked[1][0, result]
        lost.append(world.objective(*best, beta=BETA) - world.objective(best[0], one, beta=BETA))
    assert small["right"][1] > small["right"][0] and small["wrong"][1] < small["wrong"][0]
    said("after a right result costs more than passing on", bool(lost[0] > 3 * lost[1]))
    optimist = world.unmasked_optimum(beta=BETA)
    said("of the fast tool it expects a right result with", RIGHT)
    said(
        "and only the call is wrong. DPO calls the fast tool with probability",
        optimist[0][0].exp(),
        calls[1],
        RIGHT,
        optimist[2][0, 0].exp(),
    )
    assert torch.allclose(optimist[1], best[1])  # the same second actions
    at = {
        b: (world.masked_optimum(beta=b), world.unmasked_optimum(beta=b)[:2], world.optimum(beta=b))
        for b in (BETA, 0.5, 1.0)
    }
    j = {b: [world.objective(*p, beta=b).item() for p in at[b]] for b in at}
    assert all(j[b][2] > max(j[b][:2]) for b in at)  # the best policy has the largest J
    said("the mask is better: $J$ is", *j[BETA][:2], j[BETA][0] > j[BETA][1])
    said("But at", 0.5, *j[0.5][1::-1], 1, *j[1.0][1::-1], all(j[b][1] > j[b][0] for b in (0.5, 1)))
    masked_call, _, best_call = (first[0].exp() for first, _ in at[0.5])
    said("Nor is the masked call nearly right", 0.5, masked_call, best_call)
    # the repair: without the luck in the rewards the masked optimum is the best policy
    fair = replace(world, rewards=world.rewards - world.transition_term(beta=BETA)[..., None])
    first, second = (x.exp() for x in fair.masked_optimum(beta=BETA))
    said("subtract the luck from the rewards", first[0].item(), second[0, 1, 0].item())
    for mended, aim in zip((first, second), best, strict=True):
        occurs = world.tool > 0 if mended.ndim > 1 else slice(None)
        assert torch.allclose(mended[occurs], aim.exp()[occurs], atol=1e-6)
    assert first[0].item() == pytest.approx(0.3775, abs=5e-5)
    assert second[0, :, 0].tolist() == pytest.approx([0.9933, 0.0067], abs=5e-5)


def step(said):
    scope = scope_of_the_step()
    with torch.no_grad():
        tools = scope["batch"].response_mask & ~scope["batch"].action_mask
        plain = models.policy_logprobs(scope["start"], scope["batch"])[tools]
        every = scope["every_logprob"](scope["start"], scope["batch"])[tools]
    said("`models.policy_logprobs` gives", 0, (plain == 0).all(), (every < 0).all())
    said("| **2.** Score |", SAMPLES)
    for part in ("3.** Pair", "4.** Mask", "5.** Log-probabilities"):
        said(f"| **{part} |", 2)
    said("The next cell measures point", 3)
    said("The first loss is $\\log 2$ =", math.log(2))
    said("The next cell runs", STEPS, STEPS)
    end = {name: [values[m] for m in (False, True)] for name, (values, _) in AT_THE_END.items()}
    said("The run without the mask has the lower loss: about", *end["loss"])
    grown, own = end["tool"], end["policy"]
    said(
        "Without the mask $\\Delta h$ grows on the tool's tokens", grown[0], 0, 20, *own, -grown[1]
    )
    said("with all weights held at", 0.5)
    said("has less to gain there (point", 2)


def iterations(said, runs):
    said("sample eight responses to each of", PROMPTS * REFRESH, REFRESH)
    config = multi_turn_config({"method": "dpo", "seed": 0})
    assert (SAMPLES, ITERATIONS) == (8, 3) and config.dpo.beta == 0.1
    optimiser = config.dpo.optimiser  # "decays", "is clipped", "older"
    assert optimiser.schedule == "linear" and optimiser.max_grad_norm and config.refresh == 12
    masked, without = (
        [mean(runs, f"{m}{x}", "pass_1") for m in METHODS] for x in ("", ", no mask")
    )
    before = mean(runs, "start", "pass_1")
    said("With the mask, right samples rise from", before, *masked[::2], *without[::2])
    said("and needs the mask as much as DPO:", masked[1], without[1])
    three = ("start", "dpo, no mask", "dpo")
    said(
        "raises the share of responses with a call from",
        *[mean(runs, name, "calls") for name in three],
    )
    numbers = [mean(runs, name, "right numbers") for name in three]
    said("only with the mask.* At the start", *numbers)
    start = runs.loc["start"].mean(numeric_only=True)
    head = start["no call"] * start.in_the_head  # right answers without a result, a share of all
    with_result = (1 - head / start.pass_1, 1 - (start["no call"] - head) / (1 - start.pass_1))
    said("At the start a result is in", *with_result)
    said("A run is three iterations, with $\\beta = 0.1$ as in section 5")
    history = experiments.results("multi_turn_history")
    last = history[history.step == ITERATIONS * REFRESH].groupby("variant").right.mean()
    apart = [abs(last[v] - mean(runs, v, "pass_1")) for v in last.index if "errs" not in v]
    assert max(apart) < 0.025  # the history, for exercise 4, is of another test of the same runs
    said("The test has", TRIES, ASKED)
    said("share of right answers among samples at temperature", 1, SAMPLING.temperature == 1)
    names = ("dpo", "dpo, no mask")
    said(
        "*Greedy answers hide the gap.* DPO has",
        *[mean(runs, name, column) for column in ("greedy", "no call") for name in names],
    )
    both = [mean(runs, f"{m}{x}", "greedy") for m in METHODS for x in ("", ", no mask")]
    assert min(both) > 0.965
    assert max(mean(runs, m, "forged") for m in METHODS) < 0.003  # "does no harm"


def unreliable(said, runs):
    assert ERRS == 1 / 5
    plain = mean(runs, "grpo", "pass_1") - mean(runs, "dpo", "pass_1")
    lead = mean(runs, errs("grpo"), "pass_1") - mean(runs, errs("dpo"), "pass_1")
    costs = [mean(runs, m, "pass_1") - mean(runs, errs(m), "pass_1") for m in METHODS]
    assert max(costs) - min(costs) < 0.015
    said("But GRPO's lead over DPO is", plain, lead)
    right, with_errors = (
        sum(mean(runs, name(m), "pass_1") for m in METHODS) / 3 for name in (str, errs)
    )
    said("With the mask they lower right answers from", right, with_errors)
    said("explains most of this:", right, 5, right * ERRS)
    bare = [f"{m}, no mask" for m in METHODS]
    cheaper = [mean(runs, m, "pass_1") - mean(runs, errs(m), "pass_1") for m in bare]
    said("Without the mask fewer answers are right", min(cheaper), max(cheaper))
    assert max(cheaper) < min(costs)
    changed = []
    for method in ("dpo", "kto"):
        for name in (method, errs(method)):
            follows = name.replace(method, f"{method}, reference follows", 1)
            changed.append(abs(mean(runs, name, "pass_1") - mean(runs, follows, "pass_1")))
    assert len(changed) == 4
    said("This changes right answers by less than", 0.01, max(changed) < 0.01)


def exercises(said, world):
    right, wrong = world.optimal_values(beta=BETA)[2][0].tolist()
    q = (right + wrong) / 2
    said("a third tool is right in half")
    said("builds the mask of step", 4)
    said("*Hint:* NaN times", 0)
    said("$Q = (0.86 - 0.14) / 2$", q, right - q)
    said("Rewards of", 300)


def test_nothing_tells_the_policy_that_a_result_is_wrong(agent):
    """After a right call tiny-agent works on with the result, right or wrong, equally often."""
    model, tokenizer = agent
    problems = [p for p in tasks.calculator.problems("test", ASKED) for _ in range(2)]
    trusted = []
    for error_rate in (0.0, 1.0):
        batch = models.sample(
            model,
            *models.encode_prompts(tokenizer, [p.prompt for p in problems]),
            eos_id=tokenizer.eos_token_id,
            config=SAMPLING,
            generator=torch.Generator().manual_seed(0),
            tool=tasks.calculator.Calculator(tokenizer, error_rate=error_rate),
        )
        went_on = []
        texts = models.decode(tokenizer, batch), written_by_policy(batch, tokenizer)
        for problem, response, written in zip(problems, *texts, strict=True):
            if tasks.calculator.outcome(problem.expression, written) != "right call":
                continue
            result, answer = response.rpartition("{")[2].split("}")
            product = tasks.calculator.product_in(problem.expression)
            assert (int(result) != math.prod(map(int, product.split("*")))) == error_rate
            went_on.append(answer == str(eval(problem.expression.replace(product, result))))
        assert len(went_on) > 200
        trusted.append(sum(went_on) / len(went_on))
    assert min(trusted) > 0.95 and abs(trusted[0] - trusted[1]) < 0.02


# ---- section 5 and the gradient of its first step


def run_of_section_5(masked, dpo=core.dpo):
    """The rows of one of the lesson's two runs. dpo: the loss."""
    scope, threads = scope_of_the_step(), torch.get_num_threads()
    scope["core"] = SimpleNamespace(sequence_logprobs=core.sequence_logprobs, dpo=dpo)
    order = loops.shuffled_batches(len(scope["train"]), 32, STEPS, seed=0)
    rows = [scope["agent_step"](index, masked) for index in order]
    torch.set_num_threads(threads)
    return rows


def cell_with(words):
    """The source of the lesson's first code cell that has these words."""
    book = nbformat.read(NOTEBOOKS / "15_an_agent_with_a_tool.ipynb", as_version=4)
    return next(c.source for c in book.cells if c.cell_type == "code" and words in c.source)


def at_the_end(rows, column):
    return sum(row[column] for row in rows[-6:]) / 6


@pytest.mark.slow
def test_without_the_mask_the_loss_is_lower_and_the_agent_worse(monkeypatch):
    """The lesson's own runs. Its page says "about", because another processor rounds differently."""
    monkeypatch.delenv("FAST", raising=False)
    runs = {masked: run_of_section_5(masked) for masked in (True, False)}
    for column, (expected, apart) in AT_THE_END.items():
        for masked, value in expected.items():
            assert at_the_end(runs[masked], column) == pytest.approx(value, abs=apart)
    # "near 0 for about 20 steps": 0.09 here; the end is 0.5
    assert sum(abs(row["policy"]) for row in runs[False][:20]) / 20 < 0.15
    assert runs[True][1]["policy"] > 0.05  # "grows from the first step"
    assert runs[True][19]["policy"] > 0.6


@pytest.mark.slow
def test_the_falling_weight_of_dpo_is_not_why_it_learns_less(monkeypatch):
    """Without the mask, every pair has the weight 1/2: -beta times the difference / 2."""
    monkeypatch.delenv("FAST", raising=False)

    def held(chosen, rejected, ref_chosen, ref_rejected, *, beta):
        return -beta * ((chosen - ref_chosen) - (rejected - ref_rejected)) / 2

    rows = run_of_section_5(False, dpo=held)
    values, apart = AT_THE_END["right"]
    assert at_the_end(rows, "right") == pytest.approx(values[False], abs=apart)


def test_exercise_5_sees_a_missing_mask_and_gradients_that_stay():
    """Its list: the first loss agrees, the second tells the mask, the third the gradients."""
    losses = {}
    for name in ("right", "no mask", "gradients stay"):
        scope, threads = scope_of_the_step(), torch.get_num_threads()
        if name == "gradients stay":
            scope["optimizer"].zero_grad = lambda: None
        steps = [torch.arange(8 * i, 8 * i + 8) for i in range(3)]
        losses[name] = [scope["agent_step"](i, name != "no mask")["loss"] for i in steps]
        torch.set_num_threads(threads)
    first, second, third = zip(*losses.values(), strict=True)
    assert first == pytest.approx([math.log(2)] * 3)
    assert abs(second[1] - second[0]) > 0.01 and second[2] == second[0]
    assert third[2] != third[0]


def test_most_of_the_first_gradient_is_the_tools(agent):
    """Nine tenths of its squared norm for DPO, three quarters for GRPO, a fifth of the tokens."""
    model, tokenizer = copy.deepcopy(agent[0]).requires_grad_(True), agent[1]
    prompts = [p.prompt for p in tasks.calculator.problems("train", 32, seed=1)]
    batch = models.sample(
        model,
        *models.encode_prompts(tokenizer, prompts),
        eos_id=tokenizer.eos_token_id,
        config=models.SamplingConfig(max_new_tokens=32, temperature=1.0),
        samples_per_prompt=SAMPLES,
        generator=torch.Generator().manual_seed(0),
        tool=tasks.calculator.Calculator(tokenizer),
    )
    scores = rewards.reward_function(rewards.right_with_calculator, tokenizer)(batch)
    scores = scores.view(-1, SAMPLES)
    advantages = core.group_relative(scores).flatten()
    rows = torch.arange(len(scores))[:, None] * SAMPLES
    differ = scores.amax(1) > scores.amin(1)
    pairs = torch.zeros_like(advantages)  # +1 for a chosen response, -1 for a rejected one
    pairs[(rows[:, 0] + scores.argmax(1))[differ]] = 1
    pairs[(rows[:, 0] + scores.argmin(1))[differ]] = -1

    every = replace(batch, action_mask=batch.response_mask)
    logprobs = models.policy_logprobs(model, every)
    tools = batch.response_mask & ~batch.action_mask
    assert 0.18 < tools.sum() / batch.response_mask.sum() < 0.23
    lengths = batch.response_mask.sum(1)
    for weight, low, high in ((pairs, 0.87, 0.93), (advantages / lengths, 0.7, 0.78)):
        squared = []
        for mask in (tools, batch.action_mask):
            loss = (weight * torch.where(mask, logprobs, 0.0).sum(1)).mean()
            parts = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
            squared.append(sum(g.square().sum() for g in parts))
        assert low < squared[0] / sum(squared) < high  # the two parts are nearly orthogonal


def test_the_cell_of_section_5_measures_the_first_gradient():
    """It finds the same nine tenths, for the pairs of the lesson's own first step."""
    scope, threads = scope_of_the_step(), torch.get_num_threads()
    scope["order"] = list(loops.shuffled_batches(len(scope["train"]), 32, 1, seed=0))
    exec(cell_with("gradients = []"), scope)
    torch.set_num_threads(threads)
    own, tools = (part.square().sum().item() for part in scope["parts"].values())
    assert 0.87 < tools / (own + tools) < 0.95


# ---- the curves of exercise 4


def curves_of_exercise_4():
    """The two lists of the lesson's figure, by name."""
    return ast.literal_eval(ast.parse(cell_with('"colleague": [')).body[0].value)


def test_the_right_curve_of_exercise_4_is_recorded():
    history = experiments.results("multi_turn_history")
    run = history[(history.variant == "dpo") & (history.seed == 0)]
    assert curves_of_exercise_4()["right mask"] == run.right.round(2).tolist()


@pytest.mark.slow
def test_the_other_curve_of_exercise_4_is_that_of_a_shifted_mask(monkeypatch):
    def shifted(draw):
        def sample(model, *args, **options):
            batch = draw(model, *args, **options)
            mask = batch.action_mask
            own = torch.cat([torch.zeros_like(mask[:, :1]), mask[:, :-1]], 1)
            return replace(batch, action_mask=own & batch.response_mask)

        return sample

    monkeypatch.setattr(multi_turn, "unmasked", shifted)
    monkeypatch.setattr(multi_turn, "judged_agent", lambda *given, **named: {})  # it takes long
    settings = {"method": "dpo", "mask": False, "seed": 0}
    config = multi_turn.multi_turn_config(settings)
    log = []
    row, history = multi_turn.multi_turn_run(settings, config, log.append)
    assert log[-1]["loss"] < log[0]["loss"] - 0.1  # "falls nicely"
    assert row["margin_on_tool"] > 5  # most of it on {
    found = [row["right"] for row in history]
    # another processor may sample another token somewhere
    assert found == pytest.approx(curves_of_exercise_4()["colleague"], abs=0.03)
