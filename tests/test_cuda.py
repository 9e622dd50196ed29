"""For a machine with an NVIDIA GPU: python -m pytest -m cuda. The same numbers there as on the CPU."""

import copy
import math
import os
import time

import pytest
import torch

from minirlhf import core, loops, models, runtime
from minirlhf.loops.config import OptimiserConfig
from minirlhf.models.load import checkpoint
from tests import histories
from tests.test_devices import RUNS
from tests.tiny import ending_policy, tiny_policy, tiny_tokenizer

GPU = os.environ.get("MINIRLHF_TEST_DEVICE", "cuda")
pytestmark = pytest.mark.cuda


@pytest.fixture(autouse=True)
def gpu():
    """Models are loaded on the GPU during a test; the test fails where there is none."""
    yield runtime.use_device(GPU)
    runtime.use_device("cpu")


def fixed_batch():
    """A batch with responses of several lengths, sampled once on the CPU."""
    prompts = ["one", "a second", "3", "a longer prompt"] * 2
    sampling = models.SamplingConfig(max_new_tokens=12)
    (batch,) = models.sample_text(ending_policy(), tiny_tokenizer(), prompts, config=sampling)
    generator = torch.Generator().manual_seed(0)
    shape = batch.response_mask.shape
    numbers = {name: torch.randn(shape, generator=generator) for name in ("advantages", "returns")}
    return batch.with_columns(**numbers)


LOSSES = {
    "ppo": lambda model, batch, logprobs: core.ppo_clip(
        logprobs, batch.old_logprobs.double(), batch.advantages.double(), batch.response_mask
    ),
    "k3": lambda model, batch, logprobs: core.k3(
        logprobs, batch.old_logprobs.double(), batch.response_mask
    ),
    "log-probability": lambda model, batch, logprobs: logprobs.masked_fill(~batch.response_mask, 0),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_fixed_batch_has_the_same_logprobs_losses_and_gradients(loss, gpu):
    batch, found = fixed_batch(), []
    for place in (torch.device("cpu"), gpu):
        model = tiny_policy().double().to(place)
        logprobs = models.policy_logprobs(model, batch)
        losses = LOSSES[loss](model, batch, logprobs)
        core.aggregate(losses, batch.response_mask).backward()
        gradients = [p.grad.cpu() for p in model.parameters()]
        found.append([logprobs.detach().cpu(), losses.detach().cpu(), *gradients])
    for here, there in zip(*found, strict=True):
        torch.testing.assert_close(here, there, rtol=0, atol=1e-9)


def test_a_batch_moves_whole(gpu):
    batch = fixed_batch()
    moved = batch.to(gpu)
    assert moved.device == torch.zeros(0, device=gpu).device and batch.device.type == "cpu"
    columns = [getattr(moved, name) for name in ("prompt_mask", "action_mask", "advantages")]
    assert {column.device for column in columns} == {moved.device}
    assert torch.equal(moved.sequences.cpu(), batch.sequences)


def test_a_reward_model_gives_the_same_scores(gpu):
    batch = fixed_batch()
    critic = models.ScalarModel(tiny_policy(1).base_model).double()
    here = models.token_scores(critic, batch)
    there = models.token_scores(copy.deepcopy(critic).to(gpu), batch)
    assert there.device == batch.device
    torch.testing.assert_close(here, there, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", RUNS)
def test_three_steps_of_every_loop(name, gpu, monkeypatch):
    for maker in ("tiny_policy", "ending_policy"):
        made = getattr(histories, maker)
        monkeypatch.setattr(
            histories, maker, lambda *args, made=made, **given: made(*args, **given).to(gpu)
        )
    monkeypatch.setattr(histories, "digest", lambda history, *models: (history, models))
    history, trained = RUNS[name]()
    numbers = [x for row in history for x in row.values() if isinstance(x, float)]
    assert numbers and all(map(math.isfinite, numbers))
    assert {p.device.type for model in trained for p in model.parameters()} == {gpu.type}


def test_a_run_on_the_gpu_is_resumed(gpu, tmp_path):
    def run(**on):
        data, config = histories.COMPLETIONS, loops.SFTConfig(batch_size=2, epochs=3)
        return loops.train_sft(tiny_policy().to(gpu), tiny_tokenizer(), data, config, **on)[0]

    class Stop(Exception):
        pass

    def stop(row):
        if row["step"] == 4:
            raise Stop

    path = tmp_path / "run.safetensors"
    with pytest.raises(Stop):
        run(checkpoint=loops.Checkpoint(path, every=0.0), on_step=stop)
    resumed = run(checkpoint=loops.Checkpoint(path, resume=True))
    pairs = zip(run().parameters(), resumed.parameters(), strict=True)
    assert all(torch.allclose(a, b, rtol=0, atol=1e-6) for a, b in pairs)


def test_grpo_steps_of_smollm2_in_bfloat16(gpu, record_property):
    """Seconds and memory go to the report: add --junitxml=report.xml."""
    if checkpoint(runtime.SMOLLM2) == runtime.SMOLLM2:
        pytest.skip("smollm2-135m is not here: minirlhf data --model smollm2-135m")
    policy, tokenizer = models.load_policy(runtime.SMOLLM2)
    before = [p.clone() for p in policy.bfloat16().parameters()]
    config = loops.GroupConfig(
        steps=3,
        prompts_per_step=4,
        group_size=8,
        minibatch_size=32,
        optimiser=OptimiserConfig(lr=1e-4, micro_batch=8),
        sampling=models.SamplingConfig(max_new_tokens=32),
    )
    prompts, ends = ["The film was", "I thought that", "A story about", "In the end"], []

    def length(batch):
        return batch.response_mask.sum(1).float()

    policy, history = loops.train_group(
        policy, tokenizer, prompts, length, config, on_step=lambda row: ends.append(time.time())
    )
    numbers = [x for row in history for x in row.values() if isinstance(x, float)]
    assert all(map(math.isfinite, numbers))
    assert not all(map(torch.equal, before, policy.parameters()))
    record_property("seconds of a step", f"{ends[-1] - ends[-2]:.2f}")
    if gpu.type == "cuda":
        record_property("GPU memory, GB", f"{torch.cuda.max_memory_allocated() / 1e9:.1f}")
