"""`make bench`: minirlhf against TRL and transformers on the same work, alternating in one run.

Writes results.jsonl, growth.png and the README's table. `python tests/benchmarks/bench.py rloo`
measures only that task and keeps the recorded rows of the others. `--fp32` leaves out bfloat16,
which is many times slower on a processor without it.

A round runs every task once on each side, each in a process of its own. The side that goes first
changes from round to round. The ratio of a round is the other side's median step over ours. The
table has the median of the rounds, because a machine's speed drifts.
"""

import json
import statistics
import subprocess
import sys
import time
import venv
from pathlib import Path

import torch
from matplotlib.figure import Figure
from workload import LAYERS, PROMPTS, SIZES, TASKS

from minirlhf.runtime import ROOT, atomic_path, commit, set_threads, write_text
from minirlhf.show import COLOURS, MARKERS
from minirlhf.tasks.reviews import rl_prompts

HERE, OUT = Path(__file__).parent, ROOT / "out" / "bench"
GROWTH = {
    "batch": (8, 16, 32, 64),
    "new": (16, 32, 64, 128),
    "width": (128, 256, 512),
    "group": (2, 4, 8, 16),
}


def environment(name: str) -> Path:
    """The interpreter of an environment made from requirements-<name>.txt.

    torch is installed first, so that it is the pinned one.
    """
    folder, listed = OUT / name, HERE / f"requirements-{name}.txt"
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if not (folder / "made").exists():
        venv.create(folder, with_pip=True, clear=True)
        first = next(line for line in listed.read_text().splitlines() if line.startswith("torch=="))
        for wanted in ([first], ["-r", str(listed)]):
            subprocess.run([python, "-m", "pip", "install", "-q", *wanted], check=True)
        (folder / "made").touch()
    return python


def other_side(task: str) -> tuple[Path, str]:
    """Interpreter and script of the other side; transformers is in our own environment."""
    if task in ("generate", "reviews"):
        return Path(sys.executable), "hf.py"
    return environment("trl-ppo" if task == "ppo" else "trl"), "theirs.py"


def run(python: Path, script: str, task: str, **size: int) -> dict:
    done = subprocess.run(
        [python, HERE / script, task, *(f"{k}={v}" for k, v in size.items())],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{script} {task} failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def matmul_rate(seconds: float = 0.5) -> float:
    """GFLOP/s of this machine at the work's own shape, (1536 x 256) @ (256 x 1024), now."""
    a, b, n, started = torch.randn(1536, 256), torch.randn(256, 1024), 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        a @ b
        n += 1
    return n * 2 * 1536 * 256 * 1024 / (time.perf_counter() - started) / 1e9


def gflop(task: str, size: dict) -> float:
    """The least matrix work of a step, in 10^9 floating-point operations.

    A forward pass takes 24 d^2 L + 2 s d L for each token and 2 d V where logits are needed; a
    backward pass takes twice that. Attention is causal, so only half of its square counts. Decoding
    counts each token once, and a prompt once for its group. Old log-probabilities come from
    sampling.
    """
    d, vocabulary = size["width"], size["vocabulary"]

    def passes(sequences, prompt, response, logits=True, read=1):
        tokens, length = sequences * (prompt / read + response), prompt + response
        return (
            tokens * (24 * d * d + 2 * length * d) * LAYERS
            + logits * sequences * response * 2 * d * vocabulary
        ) / 1e9

    whole = passes(size["batch"], size["prompt"], size["completion"])
    response, scalar = (
        passes(size["batch"], size["prompt"], size["new"], logits) for logits in (True, False)
    )
    group = passes(size["batch"], size["prompt"], size["new"], read=size["group"]) + 4 * response
    return {
        "generate": whole,
        "reviews": whole,
        "sft": 3 * whole / 2,
        "reward": 3 * passes(size["batch"], size["prompt"], size["completion"], False),
        "dpo": 4 * whole,
        "grpo": group,
        "rloo": group,
        "ppo": 2 * response + 2 * scalar + 12 * (response + scalar),
    }[task]


def compare(rounds: int, tasks=TASKS, *, half: bool = True) -> list[dict]:
    """Both sides, `rounds` times, in float32; then, with `half`, once in bfloat16."""
    others = {task: other_side(task) for task in tasks}  # made before the first is timed
    rows, today, at = [], time.strftime("%Y-%m-%d"), commit()
    for number in range(rounds + half):
        bf16 = int(number == rounds)
        for task in tasks:
            sides = [(Path(sys.executable), "ours.py"), others[task]]
            for python, script in sides if number % 2 else sides[::-1]:
                rate = matmul_rate()
                rows.append(
                    run(python, script, task, bf16=bf16)
                    | {"round": number, "gflops": rate, "day": today, "commit": at}
                )
                kind, seconds = "bf16" if bf16 else "fp32", rows[-1]["seconds"]
                print(f"{rows[-1]['side']:>14} {task:>9} {kind} {seconds:.3f} s", flush=True)
    return rows


def table(rows: list[dict]) -> str:
    titles = (
        "task",
        "TRL, s a step",
        "minirlhf, s a step",
        "ratio",
        "of the rounds",
        "bf16 ratio",
        "peak MiB, TRL / ours",
        "floor, s",
        "ours / floor",
        "sampling, TRL / ours",
    )
    lines = ["| " + " | ".join(titles) + " |", "| --- " * len(titles) + "|"]
    for task in dict.fromkeys(row["task"] for row in rows):
        ours, theirs = (
            [r for r in rows if r["task"] == task and (r["side"] == "minirlhf") == mine]
            for mine in (True, False)
        )
        ratios = [b["seconds"] / a["seconds"] for a, b in zip(ours, theirs, strict=True)]
        single = [ratio for ratio, row in zip(ratios, ours, strict=True) if not row["bf16"]]
        mine, other = (
            statistics.median(r["seconds"] for r in side if not r["bf16"])
            for side in (ours, theirs)
        )
        floor = gflop(task, ours[0]) / statistics.median(
            row["gflops"] for row in rows if row["commit"] == ours[0]["commit"]
        )
        shares = [
            statistics.median(r["sampling"] for r in side if not r["bf16"])
            for side in (theirs, ours)
            if "sampling" in side[0]
        ]
        peaks = [max(r["peak_mib"] for r in side if not r["bf16"]) for side in (theirs, ours)]
        cells = (
            task,
            f"{other:.3f}",
            f"{mine:.3f}",
            f"**{statistics.median(single):.2f}**",
            f"{min(single):.2f} to {max(single):.2f}",
            f"{ratios[-1]:.2f}" if ours[-1]["bf16"] else "-",
            f"{peaks[0]} / {peaks[1]}",
            f"{floor:.3f}",
            f"{mine / floor:.1f}",
            " / ".join(f"{share:.0%}" for share in shares),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def growth() -> list[dict]:
    """Our GRPO step, and the peak memory of its process, as one size at a time grows."""
    return [
        run(Path(sys.executable), "ours.py", "grpo", steps=4, **{name: value}) | {"grows": name}
        for name, values in GROWTH.items()
        for value in values
    ]


def draw(rows: list[dict]) -> Figure:
    figure = Figure(figsize=(9, 3.4), dpi=110, layout="constrained")
    for axes, (key, label) in zip(
        figure.subplots(1, 2),
        (("seconds", "seconds a step"), ("peak_mib", "peak memory, MiB")),
        strict=True,
    ):
        for index, name in enumerate(GROWTH):
            mine = [row for row in rows if row["grows"] == name]
            axes.plot(
                [row[name] / SIZES[name] for row in mine],
                [row[key] for row in mine],
                color=COLOURS[index],
                marker=MARKERS[index],
                label=f"{name} ({SIZES[name]})",
            )
        axes.set(
            xscale="log", yscale="log", xlabel="size, relative to the work's own", ylabel=label
        )
        upright = (0.2, 0.5, 1, 2) if key == "seconds" else (600, 800, 1000, 1200)
        for axis, ticks in ((axes.xaxis, (1 / 4, 1 / 2, 1, 2, 4)), (axes.yaxis, upright)):
            axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
            axis.set_ticks([], minor=True)
        axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8, frameon=False, title="what grows (its own size)", title_fontsize=8)
    return figure


def main(tasks=TASKS, rounds: int = 5, half: bool = True) -> None:
    set_threads(SIZES["threads"])
    PROMPTS.parent.mkdir(parents=True, exist_ok=True)
    write_text(PROMPTS, json.dumps(rl_prompts()))
    kept = (
        [json.loads(line) for line in (HERE / "results.jsonl").read_text().splitlines()]
        if set(tasks) < set(TASKS)
        else []
    )
    measured = compare(rounds, tasks, half=half) + [
        row for row in kept if row["task"] not in tasks and "grows" not in row
    ]
    rows = [row for task in TASKS for row in measured if row["task"] == task]
    grown = [row for row in kept if "grows" in row] or growth()
    facts = "; ".join(
        f"{', '.join(dict.fromkeys(r['task'] for r in same))}: {day}, commit {at}, "
        f"{statistics.median(r['gflops'] for r in same):.0f} GFLOP/s at (1536 x 256) @ (256 x 1024)"
        for day, at in dict.fromkeys((r["day"], r["commit"]) for r in rows)
        for same in [[r for r in rows if (r["day"], r["commit"]) == (day, at)]]
    )
    facts = f"torch {torch.__version__}, {SIZES['threads']} threads, {processor()}. {facts}."
    write_text(
        HERE / "results.jsonl",
        "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows + grown),
    )
    with atomic_path(HERE / "growth.png") as temporary:
        draw(grown).savefig(temporary, format="png")
    before, rest = (HERE / "README.md").read_text().split("<!-- table -->\n")
    write_text(
        HERE / "README.md",
        f"{before}<!-- table -->\n{facts}\n\n{table(rows)}<!-- /table -->"
        + rest.split("<!-- /table -->")[1],
    )
    print(table(rows))


def processor() -> str:
    """The processor's name, as Linux tells it."""
    path = Path("/proc/cpuinfo")
    names = (
        [
            line.split(":")[1].strip()
            for line in path.read_text().splitlines()
            if line.startswith("model name")
        ]
        if path.exists()
        else []
    )
    return names[0] if names else "an unnamed processor"


if __name__ == "__main__":
    chosen, half = [name for name in sys.argv[1:] if name != "--fp32"], "--fp32" not in sys.argv
    if unknown := set(chosen) - set(TASKS):
        raise SystemExit(
            f"Unknown: {', '.join(sorted(unknown))}; the tasks are {', '.join(TASKS)}."
        )
    main(tasks=tuple(task for task in TASKS if task in chosen) or TASKS, half=half)
