"""Files as a broken disk, another tool or a stranger might leave them, and the readers that have to bear them.

A reader may take a file or refuse it with a ``UserError``; anything else that it raises is a crash, and a find.
``benchmarks/fuzz.py`` runs many cases, the suite a few.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st
from support import PUBLISHED, TINY

from ds_pretrain.config import load_recipe
from ds_pretrain.data.index_check import check_index
from ds_pretrain.data.indexed import TokenFile
from ds_pretrain.data.manifest import read_manifest as read_corpus_manifest
from ds_pretrain.engine.checkpoint_files import damage, list_checkpoints
from ds_pretrain.engine.checkpoint_list import checkpoint_entries, is_good, last_good
from ds_pretrain.errors import UserError
from ds_pretrain.observe.checkpoint_table import checkpoint_document, checkpoint_table
from ds_pretrain.observe.jsonl import cut_after, read_jsonl
from ds_pretrain.train.history import is_rejected, read_history, unlogged

_TEXT = st.text(max_size=12) | st.sampled_from(
    ["", "\0", "a\0b", "../../etc/passwd", "/", "~", "${oc.env:HOME}", "1e3", "\ud800", "x" * 300, "-1", "nan", "null"]
)
_NUMBERS = (
    st.integers(-(2**70), 2**70)
    | st.floats()
    | st.sampled_from([0, -1, 2**31, 2**63, 2**64, 10**400, 1e308, float("inf"), float("nan")])
)
_LEAVES = st.none() | st.booleans() | _NUMBERS | _TEXT
_VALUES = st.recursive(
    _LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3), max_leaves=6
)
_ODD_YAML = st.sampled_from(
    [
        "",
        "[" * 400 + "]" * 400,
        "[" * 400,
        "{a: " * 400,
        "a: &a [*a]",
        "a: &a {b: *a}",
        "&a [" + ", ".join(["x"] * 9) + "]\n",
        "data: !!python/object/apply:os.system [id]",
        "a: 2001-99-99",
        "a: !!binary ///",
        "a: !!set {x}",
        "? [a]\n: 1",
        "? {a: 1}\n: 2",
        "1: 2\n1.5: 3\ntrue: 4\nnull: 5",
        "a: " + "9" * 5000,
        "run: {name: a}\nrun: {name: b}",
        "--- {}\n--- {}",
        "<<: {a: 1}",
        "<<: [1]",
        "curriculum: ???",
        "a: ${",
        "a: ${b.${c}}",
        "\ufeffrun: {}",
        "a: !!int x",
        "a: !!float x",
        "a: 0x_",
        "a: 1:99:99",
        "a: =",
    ]
)
_DOCUMENTS = st.sampled_from([TINY, PUBLISHED])


@st.composite
def changed(draw: st.DrawFn, documents: st.SearchStrategy[Mapping[str, Any]]) -> Any:
    """A document in which some values, at any depth, are replaced, left out or added."""
    document = json.loads(json.dumps(draw(documents)))
    for _ in range(draw(st.integers(1, 3))):
        node = document
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            inner = node[key]
            if isinstance(inner, (dict, list)) and inner and draw(st.booleans()):
                node = inner
                continue
            what = draw(st.sampled_from(["value", "value", "gone", "key"]))
            if what == "value":
                node[key] = draw(_VALUES)
            elif what == "gone":
                del node[key]
            elif isinstance(node, dict):
                node[draw(_TEXT)] = draw(_VALUES)
            break
    return document


@st.composite
def damaged(draw: st.DrawFn, texts: st.SearchStrategy[bytes]) -> bytes:
    """Bytes of which some are cut off, flipped, or replaced by others."""
    content = bytearray(draw(texts))
    for _ in range(draw(st.integers(0, 3))):
        where = draw(st.integers(0, len(content)))
        what = draw(st.sampled_from(["cut", "flip", "insert"]))
        if what == "cut":
            del content[where:]
        elif what == "insert":
            content[where:where] = draw(st.binary(max_size=6))
        elif where < len(content):
            content[where] ^= 1 << draw(st.integers(0, 7))
    return bytes(content)


def _as_yaml(document: Any) -> bytes:
    return yaml.dump(document, allow_unicode=True).encode("utf-8", "surrogatepass")


def _as_json(document: Any) -> bytes:
    return json.dumps(document).encode("utf-8")


RECIPES = (
    changed(_DOCUMENTS).map(_as_yaml)
    | damaged(_DOCUMENTS.map(_as_yaml))
    | _ODD_YAML.map(str.encode)
    | _VALUES.map(_as_yaml)
)
_KEYS = st.sampled_from(
    [
        "run.name",
        "optimizer.lr",
        "curriculum.stages.0.step",
        "curriculum.stages",
        "data.train",
        "a",
        "",
        ".",
        "run..name",
    ]
)
OVERRIDES = st.lists(
    st.builds(lambda key, value: f"{key}={value}", _KEYS | _TEXT, _VALUES.map(str) | _TEXT | _ODD_YAML) | _TEXT,
    max_size=2,
)

CORPUS_MANIFEST: Mapping[str, Any] = {
    "format_version": 1,
    "sources": ["texts"],
    "documents": 3,
    "tokens": 9,
    "dtype": "uint16",
    "bin_sha256": "0" * 64,
    "idx_sha256": "1" * 64,
    "tokenizer": "./tokenizer",
    "vocab_size": 300,
    "eos_id": 0,
    "ds_pretrain_version": "1",
}
CHECKPOINT_MANIFEST: Mapping[str, Any] = {
    "format": 1,
    "step": 7,
    "world_size": 2,
    "zero_stage": 1,
    "files": {"state.json": {"size": 2, "sha256": "2" * 64}, "engine/a.pt": {"size": 0, "sha256": "3" * 64}},
}


def _jsons(document: Mapping[str, Any]) -> st.SearchStrategy[bytes]:
    one = st.just(document)
    return (
        changed(one).map(_as_json)
        | damaged(one.map(_as_json))
        | _VALUES.map(_as_json)
        | st.sampled_from([b"[" * 3000, b'{"a":' * 3000, b"\xff", b"9" * 5000])
    )


CORPUS_MANIFESTS = _jsons(CORPUS_MANIFEST)
CHECKPOINT_MANIFESTS = _jsons(CHECKPOINT_MANIFEST)

_ROLLBACKS: list[Mapping[str, Any]] = [
    {"from_step": 150, "target_step": 100, "lr_factor": 0.5, "reason": "a spike"},
    {"from_step": 220, "target_step": 200, "lr_factor": 1, "reason": ""},
]
RECOVERY: Mapping[str, Any] = {"count": 2, "rollbacks": _ROLLBACKS}
STATE: Mapping[str, Any] = {
    "step": 7,
    "tokens": 700,
    "world_size": 2,
    "guard": {"sound_step": 7},
    "recovery": RECOVERY,
    "val_loss": 3.5,
}
RECOVERIES = _jsons(RECOVERY)
STATES = _jsons(STATE)
_LINES: list[Mapping[str, Any]] = [
    {"step": 1, "tokens": 10, "loss": 6.5},
    {"step": 1, "tokens": 10, "seq_len": 16, "val_loss": 6.4},
    {"event": "rollback", "step": 2, "tokens": 20, "to_step": 1},
    {"step": 2, "tokens": 20, "loss": None},
]
LOGS = st.lists(_jsons(_LINES[0]) | st.sampled_from(_LINES).map(_as_json), max_size=5).map(
    lambda lines: b"".join(line + b"\n" for line in lines)
)


def _index(lengths: list[int], bounds: list[int], code: int = 8, version: int = 1) -> bytes:
    offsets = [2 * sum(lengths[:index]) for index in range(len(lengths))]
    return (
        struct.pack("<9sQBQQ", b"MMIDIDX\x00\x00", version, code, len(lengths), len(bounds))
        + struct.pack(f"<{len(lengths)}i", *lengths)
        + struct.pack(f"<{len(offsets)}q", *offsets)
        + struct.pack(f"<{len(bounds)}q", *bounds)
    )


_WHOLE_INDEX = st.just(_index([3, 2, 4], [0, 1, 2, 3]))
INDEXES = (
    damaged(_WHOLE_INDEX)
    | st.builds(
        _index,
        st.lists(st.sampled_from([0, 1, 2, 3, -1, 2**31 - 1, -(2**31)]), max_size=4),
        st.lists(st.sampled_from([0, 1, 2, 3, 4, -1, 2**62, -(2**63)]), max_size=5),
        st.integers(0, 255),
        st.sampled_from([1, 1, 1, 0, 2**64 - 1]),
    )
    | st.builds(
        lambda version, code, sequences, bounds, rest: (
            struct.pack("<9sQBQQ", b"MMIDIDX\x00\x00", version, code, sequences, bounds) + rest
        ),
        st.just(1),
        st.integers(1, 8),
        st.sampled_from([0, 1, 2, 2**63, 2**64 - 1]),
        st.sampled_from([0, 1, 2, 2**61, 2**64 - 1]),
        st.binary(max_size=60),
    )
)


def read_recipe(content: bytes, folder: Path, overrides: list[str]) -> None:
    """What ``load_recipe`` makes of a file and a command line."""
    path = folder / "recipe.yaml"
    path.write_bytes(content)
    with suppress(UserError):
        load_recipe([path], overrides)


def read_index(content: bytes, folder: Path, tokens: int) -> None:
    """What opening, and checking, make of an index, beside token ids of a length of their own."""
    (folder / "corpus.idx").write_bytes(content)
    (folder / "corpus.bin").write_bytes(b"\1\0" * tokens)
    with suppress(UserError):
        corpus = TokenFile.open(folder / "corpus")
        assert corpus.document_at(corpus.num_tokens - 1) >= 0 or corpus.num_documents == 0
        check_index(corpus)
        assert corpus.num_tokens == int(corpus.document_lengths.sum())
        assert corpus.num_documents >= 0


def read_manifest_of_corpus(content: bytes, folder: Path) -> None:
    """What is made of the manifest of a corpus, up to the place of its tokenizer."""
    (folder / "corpus.manifest.json").write_bytes(content)
    with suppress(UserError):
        manifest = read_corpus_manifest(folder / "corpus")
        assert manifest is not None
        place = Path(manifest.tokenizer_path(folder / "corpus"))
        place.is_dir()  # what load_tokenizer asks first
        if manifest.tokenizer.startswith("./"):
            assert place.resolve().is_relative_to(folder.resolve()), place


def read_manifest_of_checkpoint(content: bytes, folder: Path) -> None:
    """What is made of the manifest of a checkpoint: nothing but sentences."""
    (folder / "manifest.json").write_bytes(content)
    (folder / "state.json").write_text("{}")
    assert all(isinstance(problem, str) for problem in damage(folder))


def read_recovery(content: bytes, folder: Path) -> None:
    """What a start, and an export, make of what is remembered of a run's rollbacks."""
    (folder / "recovery.json").write_bytes(content)
    with suppress(UserError):
        history = read_history(folder)
        assert 0 < history.lr_factor <= 1
        assert all(skip.steps > 0 for skip in history.skips)
        assert all(isinstance(history.rejects(step, 0), bool) for step in (0, 150))
        assert len([str(rollback) for rollback in history.rollbacks]) == history.count


def read_state_of_checkpoint(content: bytes, folder: Path) -> None:
    """What is made of a checkpoint's state before its checksum is known to be right."""
    saved = folder / "run/checkpoints/step_00000007"
    saved.mkdir(parents=True, exist_ok=True)
    (saved / "state.json").write_bytes(content)
    history = read_history(folder / "run")
    assert isinstance(is_rejected(saved, history), bool)
    assert isinstance(is_good(saved, 7), bool)
    last_good(dict(list_checkpoints(saved.parent)), 7)
    entries = checkpoint_entries(saved.parent)
    assert checkpoint_table(entries).row_count == 1
    json.dumps(checkpoint_document(entries))


def read_logs(content: bytes, folder: Path, step: int, rollbacks: int) -> None:
    """What a start makes of the logs that it is to cut, and a report of what is left."""
    for name in ("metrics.jsonl", "events.jsonl"):
        (folder / name).write_bytes(content)
        with suppress(UserError):
            read_jsonl(folder / name)
        cut_after(folder / name, step, ("stage_start",), rollbacks)
        read_jsonl(folder / name)
    (folder / "events.jsonl").write_bytes(content)
    with suppress(UserError):
        unlogged(folder, read_history(folder))


Reader = Callable[..., None]
CASES: Mapping[str, tuple[Reader, tuple[st.SearchStrategy[Any], ...]]] = {
    "recipe": (read_recipe, (RECIPES, OVERRIDES)),
    "index": (read_index, (INDEXES, st.sampled_from([0, 1, 9, 9, 18]))),
    "corpus manifest": (read_manifest_of_corpus, (CORPUS_MANIFESTS,)),
    "checkpoint manifest": (read_manifest_of_checkpoint, (CHECKPOINT_MANIFESTS,)),
    "recovery": (read_recovery, (RECOVERIES,)),
    "checkpoint state": (read_state_of_checkpoint, (STATES,)),
    "logs": (read_logs, (LOGS, st.integers(-1, 3), st.integers(0, 3))),
}
