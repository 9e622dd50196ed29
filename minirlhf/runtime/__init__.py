"""What every run needs: paths, seeds, threads, output files, checks of inputs, and the history."""

from minirlhf.runtime.checks import PromptError, check, check_text
from minirlhf.runtime.history import History, OnStep, Row
from minirlhf.runtime.kept import Kept, kept_elsewhere, save_folder
from minirlhf.runtime.output import (
    OLD,
    atomic_folder,
    atomic_path,
    locked,
    output_file,
    output_folder,
    write_text,
)
from minirlhf.runtime.paths import LABELS, PARTIAL, check_folder, reason, straight
from minirlhf.runtime.settings import (
    CACHE,
    DATA,
    LARGEST_SEED,
    ROOT,
    SMOLLM2,
    check_seed,
    commit,
    device_named,
    lesson_sources,
    need_checkout,
    seed_all,
    set_threads,
    use_device,
)
from minirlhf.runtime.signals import signals_wait

__all__ = [
    "CACHE",
    "DATA",
    "History",
    "Kept",
    "LABELS",
    "LARGEST_SEED",
    "OLD",
    "OnStep",
    "PARTIAL",
    "PromptError",
    "ROOT",
    "Row",
    "SMOLLM2",
    "atomic_folder",
    "atomic_path",
    "check",
    "check_folder",
    "check_seed",
    "check_text",
    "commit",
    "device_named",
    "kept_elsewhere",
    "lesson_sources",
    "locked",
    "need_checkout",
    "output_file",
    "output_folder",
    "reason",
    "save_folder",
    "seed_all",
    "set_threads",
    "signals_wait",
    "straight",
    "use_device",
    "write_text",
]
