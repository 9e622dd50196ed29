"""Sheet 90, the exact world: every number of its prose, and what its tables and figures show.

The estimators themselves are compared with the truth in tests/core/test_exact.py.
"""

import jupytext
import pandas as pd
import pytest
import torch

from minirlhf import core
from minirlhf.classroom.course import NOTEBOOKS, solutions_of, tags
from tests.claims.prose import Said, lesson

SOURCE = NOTEBOOKS / "src" / "90_the_exact_world.py"


@pytest.fixture(scope="module")
def sheet():
    """All names of the sheet, after its cells have run; `tables` has the tables in their order."""
    names, tables = {}, []
    for cell in jupytext.read(SOURCE).cells:
        if cell.cell_type == "code" and not tags(cell) & {"exercise", "solution"}:
            *body, last = cell.source.rstrip().split("\n")
            if last.startswith(("compare(", "pd.DataFrame(")):
                exec("\n".join(body), names)
                tables.append(eval(last, names))
            elif not last.startswith("show."):
                exec(cell.source, names)
            else:
                exec("\n".join(body), names)
    return names | {"tables": tables}


def test_only_the_mean_over_tokens_is_biased(sheet):
    bias = sheet["tables"][0].bias
    assert list(bias.index) == list(sheet["policy_gradients"]) and len(bias) == 5
    assert (bias.iloc[:4] == 0).all() and bias.iloc[4] > 0.1


def test_the_token_mean_is_less_biased_in_larger_batches(sheet):
    token, sequence = sheet["tables"][1].iloc[:4], sheet["tables"][1].iloc[4]
    assert token.bias.is_monotonic_decreasing and token.cosine.is_monotonic_increasing
    assert token.cosine.iloc[0] < 0.99 and token.bias.iloc[-1] > 0.05
    assert torch.allclose(
        sheet["token_mean"](1), sheet["per_response"] * sheet["mean_length"], atol=1e-9
    )
    assert sequence.bias == token.bias.iloc[0]


def test_one_batch_by_hand_and_by_the_package(sheet):
    mask, lengths = sheet["mask"], sheet["lengths"]
    losses = core.reinforce(
        sheet["world"].logprobs(sheet["policy"]).detach(), sheet["returns"], mask
    )
    pair = [0, 14]
    by_hand = losses[pair].sum() / lengths[pair].sum()
    assert torch.allclose(by_hand, core.aggregate(losses[pair], mask[pair], how="token_mean"))


def test_what_each_group_baseline_estimates(sheet):
    table = sheet["tables"][2]
    assert list(table.progress.iloc[:3]) == [1 / 2, 3 / 4, 1] and (table.cosine.iloc[:3] == 1).all()
    assert table.bias.iloc[2] == 0
    assert table.cosine.iloc[3] < 0.999 and table.bias.iloc[3] > 0.1


def test_gae_trades_variance_for_the_errors_of_the_critic(sheet):
    bias = {name: torch.tensor([float(x) for x in xs]) for name, xs in sheet["bias"].items()}
    variance = {name: [float(x) for x in xs] for name, xs in sheet["variance"].items()}
    assert bias["true V"].max() < 1e-9 and bias["wrong V"][-1] < 1e-9
    assert (bias["wrong V"].diff() < 0).all() and bias["wrong V"][0] > 0.1
    assert variance["true V"] == sorted(variance["true V"])
    world, per_token = sheet["world"], sheet["per_token"]
    each = torch.einsum("nt,ntsv->nsv", sheet["returns"], per_token)
    mean = world.expectation(sheet["policy"], each)
    without = world.expectation(sheet["policy"], (each - mean).square().sum((1, 2)))
    assert variance["true V"][-1] < without


def test_value_and_gradient_of_the_kl_estimators(sheet):
    values, gradients = sheet["tables"][3:]
    truth = sheet["world"].kl(sheet["policy"], sheet["world"].ref_logits).item()
    right = values.loc[["k1", "k3", "exact at each prefix"], "mean"]
    assert (right - truth).abs().max() < 0.001 < abs(values.loc["k2", "mean"] - truth) - 0.01
    assert values.loc["k1", "lowest"] < 0 < values.drop("k1").lowest.min()
    assert values["std"].idxmax() == "k3" and values["std"].idxmin() == "exact at each prefix"
    whole = gradients.loc[["k1 in the reward", "k2 in the loss, whole response"]]
    assert (whole.bias == 0).all()
    nothing = gradients.loc[["k1 in the loss, per token", "k1 in the loss, whole response"]]
    assert (nothing.progress == 0).all()
    part = gradients.loc[["k2 in the loss, per token", "k3 in the loss, per token"]]
    assert (part.cosine < 0.99).all()
    world, logits = sheet["world"], sheet["policy"].clone().requires_grad_(True)
    (reverse,) = torch.autograd.grad(world.kl(world.ref_logits, logits), logits)
    found = sheet["placements"]["k3 in the loss, whole response"]
    assert torch.allclose(found, reverse)


def test_where_ppo_and_dpo_end(sheet):
    ends = pd.Series({name: path[-20:].max().item() for name, path in sheet["walks"].items()})
    assert ends["PPO"] < 1e-6 and ends["DPO"] < 1e-6
    assert ends["PPO, whitened"] > 1e-3 and ends["DPO, hard labels"] > 0.5
    hard = sheet["walks"]["DPO, hard labels"]
    assert hard.argmin() < 50 and hard[-1] > hard[100]


def test_the_solutions_give_what_their_text_says(sheet):
    names = dict(sheet)
    cells = solutions_of(jupytext.read(SOURCE), SOURCE.stem).cells
    answers = [c.source for c in cells if c.cell_type == "code" and "solution" in tags(c)]
    new, after = (code.rsplit("\n", 1) for code in answers)
    exec(new[0], names)
    table = eval(new[1], names)
    assert list(table.bias) == [0, 0.5, 0] and table.loc["b"].tolist() == [1, 0.5, 0.5]
    exec(after[0], names)
    assert eval(after[1], names).progress.tolist() == [0]
    said = Said([c for c in cells if "solution" in tags(c)])
    said("the progress is", *table.loc["b", ["progress", "bias"]])


def test_the_numbers_of_the_prose(sheet):
    world, truth = sheet["world"], sheet["truth"]
    short, prefixes = len(world.sequences), len(world.states)
    with lesson("90") as said:
        said("That makes", short, prefixes)
        said("a sum over", short, truth.numel(), prefixes, len(world.vocab), truth.numel())
        said("- **cosine**", 1)
        said("- **progress**", 1)
        said("divided by the norm of the true gradient.", 0)
        critics = sheet["critics"]["wrong V"] - sheet["critics"]["true V"]
        said("(the true one plus", critics.min(), critics.max())
        said("shows the distance to the Gibbs policy over", len(sheet["walks"]["PPO"]))
        said("At the optimum every advantage is", 0, 0, 0)
        said("(a) the mean reward of the", short)
        half = sheet["tables"][2].iloc[0]
        said("Your mean gradient has the cosine", half.cosine, half.progress)
        said("Somebody logs k1 as the KL and sees", -0.3, sheet["tables"][3].lowest["k1"] < -0.3)
        said("When would you choose lambda below", 1)
        said("Take rewards that are", 0, 1, 1, 0, 1)
