"""What lesson 15 computes live, for its test: its step, its example and its sampled responses."""

from dataclasses import replace

import nbformat
import pandas as pd
import torch

from minirlhf import core, models, tasks
from minirlhf.classroom.course import NOTEBOOKS, tags
from minirlhf.experiments.agent import written_by_policy
from minirlhf.tasks.calculator import outcome


def scope_of_the_step():
    """What the notebook's cells define, up to `agent_step`; the models are fresh."""
    book = nbformat.read(NOTEBOOKS / "15_an_agent_with_a_tool.ipynb", as_version=4)
    scope = {}
    for cell in book.cells:
        if cell.cell_type == "code" and "exercise" not in tags(cell):
            setup = ("import copy", "torch.set_num", "eos =", "sampling =", "score =")
            setup += ("train =", "def every_logprob")
            if cell.source.startswith(setup):
                exec(cell.source, scope)
            if "def agent_step" in cell.source:
                exec(cell.source, scope)
                return scope
    raise AssertionError("the lesson has no agent_step")


def responses_of_section_2():
    """Section 2's answers in the head, all wrong, and its wrong calls among the calls."""
    scope = scope_of_the_step()
    texts = written_by_policy(scope["batch"], scope["tokenizer"])
    named = [outcome(p[:-1], text) for p, text in zip(scope["prompts"], texts, strict=True)]
    right = scope["score"](scope["batch"]).bool().tolist()
    assert right == [name == "right call" for name in named]
    wrong, calls = named.count("wrong call"), len(named) - named.count("no call")
    return named.count("no call"), wrong, calls


def example_of_section_1():
    """Its log-ratios, its mask, h of the rejected response and the table of the losses."""
    book = nbformat.read(NOTEBOOKS / "15_an_agent_with_a_tool.ipynb", as_version=4)
    (source,) = (c.source for c in book.cells if c.source.startswith("log_ratio ="))
    scope = {"torch": torch, "core": core, "pd": pd}
    exec(source, scope)
    table = pd.DataFrame(scope["table"]).T
    return scope["log_ratio"][0], scope["m"][0].int(), scope["rejected"].item(), table


def brackets(agent):
    """Mean log-probability that the start gives the tool's { and }, nats."""
    model, tokenizer = agent
    prompts = [p.prompt for p in tasks.calculator.problems("train", 64, seed=1)]
    batch = models.sample(
        model,
        *models.encode_prompts(tokenizer, prompts),
        eos_id=tokenizer.eos_token_id,
        config=models.SamplingConfig(max_new_tokens=32, temperature=1.0),
        generator=torch.Generator().manual_seed(0),
        tool=tasks.calculator.Calculator(tokenizer),
    )
    every = replace(batch, action_mask=batch.response_mask)
    with torch.no_grad():
        logprobs = models.policy_logprobs(model, every)
    tools = batch.response_mask & ~batch.action_mask
    ids = [tokenizer.convert_tokens_to_ids(bracket) for bracket in "{}"]
    return [logprobs[tools & (batch.response_ids == i)].mean().item() for i in ids]
