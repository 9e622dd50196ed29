"""The file of a checkpoint: what is damaged, edited or of another run is refused in a sentence."""

import json
import os
import random
from dataclasses import replace

import pytest
import torch

import minirlhf.loops.checkpoint_file as files
from minirlhf.loops.checkpoint import Checkpoint
from minirlhf.loops.sft import SFTConfig, train_sft
from minirlhf.models.load import same_weights
from tests.loops.test_checkpoint import PAIRS, dpo, grpo, online, pretrain, sft
from tests.tiny import needs_posix, tiny_policy, tiny_tokenizer


@pytest.fixture(scope="module")
def bytes_of_a_run(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "training.safetensors"
    sft(checkpoint=Checkpoint(path))
    return path.read_bytes()


@pytest.fixture
def run_of_sft(bytes_of_a_run, tmp_path):
    """The file of a finished run of `sft`."""
    path = tmp_path / "training.safetensors"
    path.write_bytes(bytes_of_a_run)
    return path


@pytest.mark.parametrize(
    "spoil, said",
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "damaged"),
        (lambda path: path.write_bytes(b""), "damaged"),
        (
            lambda path: files.save_file({"a": torch.zeros(1)}, path),
            "damaged or is not a checkpoint",
        ),
    ],
)
def test_a_damaged_checkpoint_is_refused_and_not_changed(spoil, said, run_of_sft):
    spoil(run_of_sft)
    before = run_of_sft.read_bytes()
    with pytest.raises(ValueError, match=said):
        sft(checkpoint=Checkpoint(run_of_sft, resume=True))
    assert run_of_sft.read_bytes() == before


@pytest.mark.parametrize(
    "change, said",
    [
        ({"lr": 1e-5}, r"optimiser.lr \(0.0003 in the file, 1e-05 now\)"),
        ({"seed": 1}, r"seed \(0 in the file, 1 now\)"),
        ({"loop": dpo}, "loop"),
        ({"rows": 3}, "data"),
        ({"words": "bb"}, "data"),
        ({"start": 1}, "start"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(change, said, run_of_sft):
    config = SFTConfig(batch_size=2, epochs=3)
    if "loop" in change:
        with pytest.raises(ValueError, match="another .*loop"):
            dpo(checkpoint=Checkpoint(run_of_sft, resume=True))
        return
    if "lr" in change:
        config = replace(config, optimiser=replace(config.optimiser, lr=change["lr"]))
    config, data = (
        replace(config, seed=change.get("seed", 0)),
        PAIRS.select(range(change.get("rows", len(PAIRS)))),
    )
    data = data.map(lambda row: {"completion": change.get("words", row["completion"])})
    with pytest.raises(ValueError, match=f"another .*{said}"):
        train_sft(
            tiny_policy(change.get("start", 0)),
            tiny_tokenizer(),
            data,
            config,
            checkpoint=Checkpoint(run_of_sft, resume=True),
        )


def test_a_flipped_byte_is_found_anywhere_in_the_file(run_of_sft):
    path, draw = run_of_sft, random.Random(0)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    places = [0, 7, 8, header - 1, header, len(whole) - 1]
    places += [draw.randrange(end) for end in (header, len(whole)) for _ in range(20)]
    places.append(whole.index(b'"sha256"') + 12)
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= draw.randint(1, 255)
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged or is not a checkpoint"):
            files.read_file(path)
    path.write_bytes(whole)
    files.read_file(path)


def changed(path, *, header=None, tensors=None):
    """Write the file again, with other parts and the right checksum."""
    kept, found = files.read_file(path)
    kept, found = kept | (header or {}), found | (tensors or {})
    kept = {key: value for key, value in kept.items() if value is not None}
    found = {key: value for key, value in found.items() if value is not None}
    metadata = {key: json.dumps(value) for key, value in kept.items()}
    files.save_file(found, path, metadata=metadata | {"sha256": files.BLANK})
    files.seal(path)


def row(step, stage="sft"):
    return {"stage": stage, "step": step, "steps": 6, "loss": 1.0}


ROWS = [row(step) for step in range(6)]


@pytest.mark.parametrize(
    "header, said",
    [
        *[({field.name: None}, f"it has no field {field.name}") for field in files.FIELDS],
        *[({field.name: 5j}, f"its {field.name} is") for field in files.FIELDS],
        ({"more": 1}, "an unknown field more"),
        ({"step": -1}, "its step is -1; it must be a whole number, 0 or more"),
        ({"step": True}, "its step is true; it must be a whole number"),
        ({"step": 3.0}, "its step is 3.0; it must be a whole number"),
        ({"step": 3}, "its history is a list of 6 rows; it must be one row for each of the 3"),
        ({"step": 10**400}, "its history is a list of 6 rows"),
        ({"step": 99, "history": [*map(row, range(99))]}, "its step is 99; it must be at most 6"),
        ({"history": ROWS[1:]}, "its history is a list of 5 rows; it must be one row for each"),
        ({"history": [*ROWS, row(6)]}, "its history is a list of 7 rows"),
        ({"history": [*ROWS[:5], row(4)]}, "its history is a list of 6 rows"),
        ({"history": [*ROWS[:5], row(True)]}, "its history is"),
        ({"history": [*ROWS[:5], row("5")]}, "its history is"),
        ({"history": [*ROWS[:5], 5]}, "its history is"),
        ({"history": [*ROWS[:5], row(5, stage=None)]}, "its history is"),
        ({"state": {"kl_coef": 1.0}}, "its state is of kl_coef; it must be of nothing"),
        ({"random": [1]}, "its random is [1]; it must be a state of Python's random generator"),
        ({"random": [3, ["x"] * 625, None]}, "its random is"),
        ({"random": [3, [-1] * 625, None]}, "its random is"),
        ({"seconds": -1.0}, "its seconds is -1.0; it must be a number of seconds, 0 or more"),
        ({"seconds": float("nan")}, "its seconds is NaN"),
        ({"machine": {"threads": [1]}}, "its machine is"),
    ],
)
def test_a_wrong_field_of_the_header_is_named(header, said, run_of_sft):
    header = {name: [[5]] if value == 5j else value for name, value in header.items()}
    changed(run_of_sft, header=header)
    before = run_of_sft.read_bytes()
    with pytest.raises(ValueError) as error, Checkpoint(run_of_sft, resume=True) as checkpoint:
        sft(checkpoint=checkpoint)
    assert said in str(error.value) and "\n" not in str(error.value)
    assert not getattr(error.value, "__notes__", None) and run_of_sft.read_bytes() == before


WORDS = {"prompt": ["p"], "chosen": ["a"], "rejected": ["b"]}


@pytest.mark.parametrize(
    "loop, state, said",
    [
        (grpo, {"kl_coef": -1.0, "running_mean": None}, "its state is"),
        (grpo, {"kl_coef": float("inf"), "running_mean": None}, "its state is"),
        (grpo, {"kl_coef": True, "running_mean": None}, "its state is"),
        (grpo, {"kl_coef": 1.0, "running_mean": "1"}, "its state is"),
        (grpo, {"kl_coef": 1.0}, "its state is of kl_coef; it must be of kl_coef, running_mean"),
        (online, {"pool": "text"}, "its state is"),
        (online, {"pool": [{"prompt": ["p"]}]}, "its state is"),
        (online, {"pool": [WORDS | {"chosen": [1]}]}, "its state is"),
        (online, {"pool": [WORDS | {"chosen": []}]}, "its state is"),
        (online, {"pool": [WORDS | {"chosen": [[["a", 1]]]}]}, "its state is"),
        (online, {"pool": [WORDS | {"chosen": [[[[-1], True]]]}]}, "its state is"),
        (online, {"pool": [WORDS | {"chosen": [[["a"]]]}]}, "its state is"),
        (online, {"pool": [WORDS | {"chosen": [[]]}]}, "its state is"),
        (online, {"pool": [{"prompt": ["p"], "completion": ["a"], "label": [1]}]}, "its state is"),
        (online, {"pool": [WORDS]}, "pairs for steps to come is 1; it must be 0"),
    ],
)
def test_a_wrong_number_of_a_loop_is_named(loop, state, said, tmp_path):
    path = tmp_path / "run.safetensors"
    loop(checkpoint=Checkpoint(path))
    changed(path, header={"state": state})
    with pytest.raises(ValueError) as error:
        loop(checkpoint=Checkpoint(path, resume=True))
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name, value, said",
    [
        ("model.0.transformer.wte.weight", None, "is missing"),
        ("model.0.transformer.wte.weight", torch.zeros(1, 1), "is [1, 1] of torch.float32"),
        ("model.0.transformer.wte.weight", torch.zeros(257, 32).half(), "of torch.float16; it mu"),
        ("model.0.transformer.wte.weight", torch.zeros(257, 32).long(), "of torch.int64; it must"),
        ("model.0.other", torch.zeros(1), "is unknown; it must be left out"),
        ("model.1.transformer.wte.weight", torch.zeros(257, 32), "is unknown"),
        ("optimizer.0.0.exp_avg", torch.zeros(3, 4), "is [3, 4] of torch.float32; it must be [257"),
        ("optimizer.0.0.exp_avg", torch.zeros(257, 32).double(), "of torch.float64; it must be"),
        ("optimizer.0.0.exp_avg", torch.tensor(0.0), "is [] of torch.float32; it must be [257"),
        ("optimizer.0.0.step", torch.tensor(-1.0), "is -1.0; it must be 0 or more"),
        ("optimizer.0.0.step", torch.tensor(float("nan")), "is nan; it must be 0 or more"),
        ("optimizer.0.0.step", torch.zeros(257, 32), "it must be [] of torch.float32"),
        ("optimizer.0.0.more", torch.zeros(257, 32), "it must be of exp_avg, exp_avg_sq, more"),
        ("optimizer.0.0.exp_avg", None, "is of exp_avg_sq, step; it must be of exp_avg, exp"),
        ("optimizer.0.999.exp_avg", torch.zeros(3), "is unknown"),
        ("optimizer.1.0.exp_avg", torch.zeros(257, 32), "is unknown"),
        ("optimizer.0.x.exp_avg", torch.zeros(3), "is unknown"),
        ("optimizer.0.", torch.zeros(3), "is unknown"),
        ("generator.0", None, "is missing"),
        (
            "generator.0",
            torch.zeros(3),
            "is [3] of torch.float32; it must be [5056] of torch.uint8",
        ),
        ("generator.0", torch.zeros(5056, dtype=torch.uint8), "is damaged"),
        ("generator.1", torch.zeros(5056, dtype=torch.uint8), "is unknown"),
    ],
)
def test_a_wrong_tensor_is_named(name, value, said, run_of_sft):
    changed(run_of_sft, tensors={name: value})
    model = tiny_policy()
    with pytest.raises(ValueError) as error:
        sft(checkpoint=Checkpoint(run_of_sft, resume=True), model=model)
    assert "does not fit the run that it names: its" in str(error.value)
    assert name.split(".")[0] in str(error.value) and said in str(error.value)
    assert "\n" not in str(error.value) and same_weights(model, tiny_policy())


def test_the_state_of_another_optimiser_is_named(tmp_path):  # Muon's, beside that of AdamW
    pretrain(checkpoint=Checkpoint(tmp_path / "run.safetensors"))
    moments = torch.zeros(16, 48)
    changed(tmp_path / "run.safetensors", tensors={"optimizer.1.0.momentum_buffer": moments[:1]})
    with pytest.raises(ValueError, match="its tensor optimizer.1.0.momentum_buffer is .1, 48. of"):
        pretrain(checkpoint=Checkpoint(tmp_path / "run.safetensors", resume=True))


@needs_posix
@pytest.mark.parametrize("kind", ["a folder", "a pipe", "not allowed"])
def test_a_checkpoint_that_cannot_be_read_is_called_by_its_cause(kind, tmp_path, monkeypatch):
    path = tmp_path / "training.safetensors"
    if kind == "a folder":
        path.mkdir()
    elif kind == "a pipe":
        os.mkfifo(path)
    else:
        sft(checkpoint=Checkpoint(path))

        def denied(*given):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(files, "sha256", denied)
    said = {"a folder": "this is a folder", "a pipe": "a device or a pipe"}
    with pytest.raises(ValueError, match=said.get(kind, "cannot be read: Permission denied")):
        sft(checkpoint=Checkpoint(path, resume=True))
    assert os.listdir(tmp_path) == [path.name]
