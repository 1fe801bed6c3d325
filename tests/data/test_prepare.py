from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from ds_pretrain.data.cache import CachedCorpus, prepare_cached
from ds_pretrain.data.documents import LeftOut
from ds_pretrain.data.indexed import TokenFile, bin_path, idx_path
from ds_pretrain.data.manifest import manifest_path, open_corpus
from ds_pretrain.data.prepare import PrepareProgress, prepare
from ds_pretrain.data.tokenizer import load_tokenizer, save_tokenizer
from ds_pretrain.data.train_tokenizer import TokenizerTraining, train_tokenizer
from ds_pretrain.errors import DataError, UserError

WORDS = "the cat sat on a mat while ünïcödé dogs ran\n"
TEXTS = [f"document {number}: " + WORDS * (number % 5 + 1) for number in range(40)]


def write_corpus(folder: Path, texts: list[str]) -> Path:
    """The first half as text files, the second as one JSONL file, so that they are read in the order given."""
    folder.mkdir(exist_ok=True)
    half = len(texts) // 2
    for number, text in enumerate(texts[:half]):
        (folder / f"{number:03}.txt").write_text(text)
    lines = (f'{{"text": {_json_string(text)}}}\n' for text in texts[half:])
    (folder / "rest.jsonl").write_text("".join(lines))
    return folder


def _json_string(text: str) -> str:
    return '"' + text.replace("\n", "\\n") + '"'


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "texts", TEXTS)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("shared") / "tokenizer"
    save_tokenizer(train_tokenizer([(text, 1.0) for text in TEXTS], TokenizerTraining(300)), folder)
    return str(folder)


def documents(prefix: Path) -> list[list[int]]:
    file = TokenFile.open(prefix)
    ends = file.document_lengths.cumsum().tolist()
    return [file.tokens[start:end].tolist() for start, end in zip([0, *ends], ends, strict=False)]


def texts_of(prefix: Path, tokenizer_path: str) -> list[str]:
    loaded = load_tokenizer(tokenizer_path)
    return [loaded.decode(ids[:-1]) for ids in documents(prefix)]


def test_a_folder_becomes_a_corpus_that_decodes_to_its_texts(tmp_path: Path, corpus: Path) -> None:
    seen: list[PrepareProgress] = []
    report = prepare(
        [str(corpus)], tmp_path / "out" / "mine", tokenizer="train:300", validation=0.25, progress=seen.append
    )
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *(f"mine{split}.{ending}" for split in ("", "-val") for ending in ("bin", "idx", "manifest.json")),
        "mine-tokenizer",
    }
    assert report.validation_prefix is not None
    assert report.validation is not None
    training, held_out = (texts_of(p, report.tokenizer) for p in (report.train_prefix, report.validation_prefix))
    assert sorted([*training, *held_out]) == sorted(TEXTS)
    assert training == [text for text in TEXTS if text in set(training)]
    assert 4 <= len(held_out) <= 16
    eos = load_tokenizer(report.tokenizer).eos_token_id
    assert all(ids[-1] == eos and eos not in ids[:-1] for ids in documents(report.train_prefix))
    assert report.train.documents + report.validation.documents == 40
    assert report.train.tokenizer == "./mine-tokenizer"
    assert report.tokenizer == str(tmp_path / "out" / "mine-tokenizer")
    assert report.left_out == LeftOut()
    reading = [progress.bytes_done for progress in seen if progress.phase == "tokenizer"]
    assert reading == sorted(reading)
    assert len(reading) > 20  # of the 40 documents, all are read for the tokenizer
    assert reading[-1] == seen[0].bytes_total
    assert seen[-1].bytes_done == seen[-1].bytes_total
    assert seen[-1].tokens == report.train.tokens + report.validation.tokens


def test_a_tokenizer_is_trained_on_the_training_split_only(tmp_path: Path) -> None:
    rare = [f"document {number}: " + "Zyzzyva " * 30 for number in range(40)]
    plain = [f"document {number}: words" for number in range(40)]
    first = prepare([str(write_corpus(tmp_path / "rare", rare))], tmp_path / "a", tokenizer="train:300", validation=0.5)
    held_out = set(texts_of(tmp_path / "a-val", first.tokenizer))
    # Only the held-out half still spells the rare word: none of it may be learned.
    mixed = [rare[index] if rare[index] in held_out else plain[index] for index in range(40)]
    second = prepare(
        [str(write_corpus(tmp_path / "mixed", mixed))], tmp_path / "b", tokenizer="train:300", validation=0.5
    )
    training = texts_of(tmp_path / "b", second.tokenizer)
    assert not any("Zyzzyva" in text for text in training)
    assert not any("Zy" in token for token in load_tokenizer(second.tokenizer).get_vocab())
    assert any("Zy" in token for token in load_tokenizer(first.tokenizer).get_vocab())


def test_workers_change_no_byte(tmp_path: Path, corpus: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ds_pretrain.data.prepare.PIECE_CHARACTERS", 200)  # many batches
    prefixes = []
    for workers in (1, 2):
        prefix = tmp_path / f"with{workers}"
        prepare([str(corpus)], prefix, tokenizer=tokenizer, validation=0.2, workers=workers)
        prefixes.append(prefix)
    for suffix in ("", "-val"):
        one, two = (prefix.with_name(prefix.name + suffix) for prefix in prefixes)
        assert bin_path(one).read_bytes() == bin_path(two).read_bytes()
        assert idx_path(one).read_bytes() == idx_path(two).read_bytes()
        assert manifest_path(one).read_bytes() == manifest_path(two).read_bytes()


def test_the_split_of_a_document_never_changes_as_a_corpus_grows(tmp_path: Path, tokenizer: str) -> None:
    more = ["one more at the front", *TEXTS[::-1], "and one at the end"]
    small = prepare([str(write_corpus(tmp_path / "a", TEXTS))], tmp_path / "small", tokenizer=tokenizer, validation=0.3)
    large = prepare([str(write_corpus(tmp_path / "b", more))], tmp_path / "large", tokenizer=tokenizer, validation=0.3)
    before, after = (set(texts_of(report.train_prefix, tokenizer)) for report in (small, large))
    assert after & set(TEXTS) == before


def test_a_given_tokenizer_is_named_in_the_manifest(tmp_path: Path, corpus: Path, tokenizer: str) -> None:
    report = prepare([str(corpus)], tmp_path / "mine", tokenizer=tokenizer)
    assert report.tokenizer == report.train.tokenizer == str(Path(tokenizer).resolve())
    assert (report.validation_prefix, report.validation) == (None, None)
    assert report.train.vocab_size == len(load_tokenizer(tokenizer))
    assert texts_of(report.train_prefix, tokenizer) == TEXTS
    file, manifest = open_corpus(tmp_path / "mine")
    assert manifest == report.train
    assert file.num_tokens == report.train.tokens


def test_a_corpus_without_a_manifest_is_opened(tmp_path: Path, corpus: Path, tokenizer: str) -> None:
    prepare([str(corpus)], tmp_path / "mine", tokenizer=tokenizer)
    manifest_path(tmp_path / "mine").unlink()
    file, manifest = open_corpus(tmp_path / "mine")
    assert (file.num_documents, manifest) == (40, None)


def test_skipped_documents_are_counted(tmp_path: Path, corpus: Path, tokenizer: str) -> None:
    (corpus / "000.txt").write_text("\n \n")
    assert prepare([str(corpus)], tmp_path / "mine", tokenizer=tokenizer).left_out == LeftOut(empty=1)


def test_an_output_that_exists_is_replaced_only_when_asked(tmp_path: Path, corpus: Path, tokenizer: str) -> None:
    prepare([str(corpus)], tmp_path / "mine", tokenizer="train:300")
    with pytest.raises(DataError, match=r"mine\.idx: exists already; .*--overwrite"):
        prepare([str(corpus)], tmp_path / "mine", tokenizer=tokenizer)
    (corpus / "000.txt").write_text("new words")
    report = prepare([str(corpus)], tmp_path / "mine", tokenizer="train:290", overwrite=True)
    assert report.train.vocab_size == 290
    assert texts_of(tmp_path / "mine", report.tokenizer)[0] == "new words"


def test_an_error_midway_leaves_nothing_visible(tmp_path: Path, corpus: Path, tokenizer: str) -> None:
    (corpus / "zzz.txt").write_bytes(b"\xff")
    out = tmp_path / "out"
    for chosen in (tokenizer, "train:300"):
        with pytest.raises(DataError, match=r"zzz\.txt: not UTF-8 at byte 0"):
            prepare([str(corpus)], out / "mine", tokenizer=chosen, validation=0.2)
        assert list(out.iterdir()) == []


def test_a_failed_replacement_leaves_the_corpus_of_before(tmp_path: Path, corpus: Path, tokenizer: str) -> None:
    before = prepare([str(corpus)], tmp_path / "mine", tokenizer=tokenizer)
    (corpus / "zzz.txt").write_bytes(b"\xff")
    with pytest.raises(DataError):
        prepare([str(corpus)], tmp_path / "mine", tokenizer=tokenizer, overwrite=True)
    assert open_corpus(tmp_path / "mine")[1] == before.train


KILLED = """
import sys
from pathlib import Path
from ds_pretrain.data.prepare import prepare

def halt(progress):
    print("writing", flush=True)
    sys.stdin.read()

if __name__ == "__main__":
    prepare([sys.argv[1]], Path(sys.argv[2]), tokenizer=sys.argv[3], workers=1, progress=halt)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_kill_midway_leaves_no_corpus_and_no_orphan(
    tmp_path: Path, corpus: Path, tokenizer: str, number: signal.Signals
) -> None:
    script = tmp_path / "script.py"
    script.write_text(KILLED)
    out = tmp_path / "out"
    command = [sys.executable, str(script), str(corpus), str(out / "mine"), tokenizer]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        workers = psutil.Process(process.pid).children(recursive=True)
        assert workers
        process.send_signal(number)
        process.wait(timeout=60)
    assert process.returncode != 0
    assert psutil.wait_procs(workers, timeout=60)[1] == []
    assert {path.name for path in out.iterdir()} <= {"mine.partial"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"workers": 0}, "workers: found 0; allowed: 1 and more"),
        ({"validation": 1.0}, r"validation: found 1\.0; allowed: a share of the documents from 0 to below 1"),
        ({"validation": -0.1}, r"validation: found -0\.1"),
        ({"tokenizer": "train:many"}, "tokenizer: found 'train:many'; allowed: train:N with N entries, as train:8192"),
        ({"tokenizer": "train"}, "tokenizer: found 'train'; allowed: train:N"),
        ({"tokenizer": "train:100"}, "found a vocabulary of 100; allowed: at least 258"),
        ({"tokenizer": "/nowhere"}, "tokenizer /nowhere: no such folder"),
        ({"text_field": "body"}, r"rest\.jsonl: line 1: no field 'body'; its fields: 'text'"),
        ({"validation": 1e-9}, "a share of 1e-09 of 40 documents leaves the validation corpus without any; give more"),
        ({"validation": 1 - 1e-9}, "of 40 documents leaves the training corpus without any"),
    ],
)
def test_bad_arguments_are_explained(
    tmp_path: Path, corpus: Path, tokenizer: str, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        prepare([str(corpus)], tmp_path / "out" / "mine", **{"tokenizer": tokenizer, "workers": 1, **arguments})  # type: ignore[arg-type]
    assert list(tmp_path.glob("out/*")) == []


def test_a_corpus_of_whitespace_is_refused(tmp_path: Path, tokenizer: str) -> None:
    (tmp_path / "a.txt").write_text("  \n")
    with pytest.raises(DataError, match="holds no documents, or nothing but what is left out"):
        prepare([str(tmp_path / "a.txt")], tmp_path / "mine", tokenizer=tokenizer)
    with pytest.raises(DataError, match="no documents to train on"):
        prepare([str(tmp_path / "a.txt")], tmp_path / "mine", tokenizer="train:300")


def cached(corpus: Path, cache_dir: Path, tokenizer: str, fraction: float | None = 0.2) -> CachedCorpus:
    return prepare_cached(
        str(corpus), tokenizer_path=tokenizer, train_vocab_size=None, validation_fraction=fraction, cache_dir=cache_dir
    )


def test_the_cache_reuses_what_is_unchanged(tmp_path: Path, corpus: Path, tokenizer: str) -> None:
    cache = tmp_path / "cache"
    first = cached(corpus, cache, tokenizer)
    stamp = bin_path(first.train).stat().st_mtime_ns
    assert cached(corpus, cache, tokenizer) == first
    assert bin_path(first.train).stat().st_mtime_ns == stamp
    assert first.validation is not None
    assert sorted(texts_of(first.train, tokenizer) + texts_of(first.validation, tokenizer)) == sorted(TEXTS)
    assert cached(corpus, cache, tokenizer, fraction=None).train != first.train
    (corpus / "000.txt").write_text("changed")
    changed = cached(corpus, cache, tokenizer)
    assert changed.train != first.train
    assert len(list(cache.iterdir())) == 3


def test_the_cache_keeps_a_trained_tokenizer_with_its_entry(tmp_path: Path, corpus: Path) -> None:
    made = prepare_cached(
        str(corpus), tokenizer_path=None, train_vocab_size=300, validation_fraction=None, cache_dir=tmp_path / "cache"
    )
    assert made.validation is None
    assert Path(made.tokenizer).parent == made.train.parent
    assert texts_of(made.train, made.tokenizer) == TEXTS


def test_two_that_prepare_one_entry_share_it(tmp_path: Path, corpus: Path, tokenizer: str) -> None:
    cache = tmp_path / "cache"
    both_started = threading.Barrier(2, timeout=60)
    makers = set()

    def meet(_: PrepareProgress) -> None:
        makers.add(threading.get_ident())

    def make() -> CachedCorpus:
        both_started.wait()
        return prepare_cached(
            str(corpus),
            tokenizer_path=tokenizer,
            train_vocab_size=None,
            validation_fraction=None,
            cache_dir=cache,
            progress=meet,
        )

    with ThreadPoolExecutor(2) as pool:
        first, second = (future.result() for future in [pool.submit(make), pool.submit(make)])
    assert first == second
    assert len(makers) == 1
    assert texts_of(first.train, tokenizer) == TEXTS
    assert [path.name for path in cache.iterdir()] == [first.train.parent.name]


def _damages() -> Iterator[tuple[str, str]]:
    yield "train.bin", r"train\.bin: found"
    yield "train.manifest.json", "damaged cache entry; delete this folder"
    yield "train-val.idx", r"train-val\.idx"


@pytest.mark.parametrize(("name", "message"), list(_damages()))
def test_a_damaged_entry_is_named(tmp_path: Path, corpus: Path, tokenizer: str, name: str, message: str) -> None:
    entry = cached(corpus, tmp_path / "cache", tokenizer).train.parent
    if name.endswith("json"):
        (entry / name).unlink()
    else:
        os.truncate(entry / name, 40)
    with pytest.raises(DataError, match=message):
        cached(corpus, tmp_path / "cache", tokenizer)
