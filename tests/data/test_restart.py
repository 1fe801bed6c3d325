from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from ds_pretrain.data import encoding, prepare
from ds_pretrain.data.cache import prepare_cached
from ds_pretrain.data.indexed import bin_path, idx_path
from ds_pretrain.data.manifest import Manifest, manifest_path, open_corpus
from ds_pretrain.data.prepare import PrepareProgress, prepare_shard
from ds_pretrain.data.publish import partial_folder, publish
from ds_pretrain.data.shard import read_journal, shard_folder
from ds_pretrain.data.tokenizer import load_tokenizer, save_tokenizer
from ds_pretrain.data.train_tokenizer import TokenizerTraining, train_tokenizer
from ds_pretrain.errors import DataError

WORDS = "the cat sat on a mat while ünïcödé dogs ran\n"
TEXTS = [f"document {number % 150}: " + WORDS * (number % 5 + 1) for number in range(200)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("shared") / "tokenizer"
    save_tokenizer(train_tokenizer([(text, 1.0) for text in TEXTS], TokenizerTraining(300)), folder)
    return str(folder)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Documents of which every fourth stands twice: two text files, one JSONL, one CSV, one text file."""
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text(TEXTS[0])
    (folder / "b.txt").write_text(" ")
    (folder / "c.jsonl").write_text("".join(json.dumps({"text": text}) + "\n\n" for text in TEXTS[1:150]))
    (folder / "d.csv").write_text("text\n" + "".join(f'"{text}"\n' for text in TEXTS[150:199]))
    (folder / "e.txt").write_text(TEXTS[199])
    return folder


def same(one: Path, two: Path) -> bool:
    """Whether two corpora and their validation corpora are the same to the byte, their manifests too."""
    pairs = [(prefix.with_name(prefix.name + end)) for prefix in (one, two) for end in ("", "-val")]
    files = [[file(prefix).read_bytes() for file in (bin_path, idx_path)] for prefix in pairs]
    described = [_described(prefix) for prefix in pairs]
    return files[:2] == files[2:] and described[:2] == described[2:]


def _described(prefix: Path) -> dict[str, object]:
    manifest = open_corpus(prefix)[1]
    assert isinstance(manifest, Manifest)
    return manifest.model_dump(exclude={"tokenizer"})


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit after every few documents."""
    monkeypatch.setattr(prepare, "PIECE_CHARACTERS", 400)
    monkeypatch.setattr(prepare, "_COMMIT_SECONDS", 0.0)


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("deduplicate", [False, True])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_shards_make_the_corpus_of_an_undivided_preparation(
    tmp_path: Path, corpus: Path, deduplicate: bool, count: int
) -> None:
    options = {"tokenizer": "train:300", "validation": 0.3, "workers": 1, "deduplicate": deduplicate}
    whole = prepare.prepare([str(corpus)], tmp_path / "whole", **options)  # type: ignore[arg-type]
    for index in reversed(range(count)):
        prepare_shard([str(corpus)], tmp_path / "out" / "mine", (index, count), **options)  # type: ignore[arg-type]
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.partial"]
    report = publish(tmp_path / "out" / "mine")
    assert same(tmp_path / "out" / "mine", tmp_path / "whole")
    assert report.left_out == whole.left_out
    assert report.left_out.duplicate == (50 if deduplicate else 0)
    assert not partial_folder(tmp_path / "out" / "mine").exists()
    assert len(load_tokenizer(report.tokenizer)) == 300


@pytest.mark.usefixtures("small_batches")
def test_shards_without_documents_are_merged(tmp_path: Path, corpus: Path, tokenizer: str) -> None:
    prepare.prepare([str(corpus / "d.csv")], tmp_path / "whole", tokenizer=tokenizer, validation=0.3, workers=1)
    for index in range(3):
        done = prepare_shard(
            [str(corpus / "d.csv")], tmp_path / "mine", (index, 3), tokenizer=tokenizer, validation=0.3, workers=1
        )
        assert (sum(done.documents) > 0) == (index == 0)
    publish(tmp_path / "mine")
    assert same(tmp_path / "mine", tmp_path / "whole")


def test_shards_that_do_not_belong_together_are_named(tmp_path: Path, corpus: Path, tokenizer: str) -> None:
    output = tmp_path / "mine"
    with pytest.raises(DataError, match=r"mine\.partial: no shards; make all with .*--shard INDEX/COUNT"):
        publish(output)
    prepare_shard([str(corpus)], output, (0, 3), tokenizer=tokenizer, workers=1)
    with pytest.raises(DataError, match=r"mine\.partial: not finished: shard 1, 2 of 3; run .* --shard 1/3` again"):
        publish(output)
    prepare_shard([str(corpus)], output, (1, 3), tokenizer=tokenizer, workers=1, min_characters=2)
    prepare_shard([str(corpus)], output, (2, 3), tokenizer=tokenizer, workers=1)
    with pytest.raises(DataError, match=r"1-of-3: was made otherwise than shard 0: selection; run"):
        publish(output)
    (corpus / "e.txt").write_text("changed")
    prepare_shard([str(corpus)], output, (1, 3), tokenizer=tokenizer, workers=1)
    with pytest.raises(DataError, match=r"1-of-3: was made otherwise than shard 0: the files of the input"):
        publish(output)
    prepare_shard([str(corpus)], output, (0, 2), tokenizer=tokenizer, workers=1)
    with pytest.raises(DataError, match=r"shards of several counts \(2, 3\)"):
        publish(output)


class StopError(Exception):
    pass


def stop_after(reports: int) -> Callable[[PrepareProgress], None]:
    seen = 0

    def progress(made: PrepareProgress) -> None:
        nonlocal seen
        seen += made.phase == "encode"
        if seen == reports:
            raise StopError

    return progress


@pytest.mark.usefixtures("small_batches")
def test_work_goes_on_behind_what_is_safe(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"tokenizer": "train:300", "validation": 0.3, "workers": 1, "deduplicate": True}
    prepare.prepare([str(corpus)], tmp_path / "whole", **options)  # type: ignore[arg-type]
    output = tmp_path / "mine"
    for _ in range(3):
        with pytest.raises(StopError):
            prepare.prepare([str(corpus)], output, **options, progress=stop_after(9))  # type: ignore[arg-type]
    folder = shard_folder(partial_folder(output), 0, 1)
    commits = read_journal(folder)
    assert len(commits) == 27
    safe = sum(commits[-1].documents)
    with (folder / "journal.jsonl").open("ab") as journal:
        journal.write(b'{"place": [3')  # torn
    with (folder / "train.bin").open("ab") as file:
        file.write(b"written, but not safe")
    encoded: list[str] = []
    count_pieces = encoding.encode_in_order

    def spy(batches, encoder, workers):  # type: ignore[no-untyped-def]
        for result in count_pieces(batches, encoder, workers):
            encoded.extend(result[0].pieces)
            yield result

    monkeypatch.setattr(prepare, "encode_in_order", spy)
    report = prepare.prepare([str(corpus)], output, **options)  # type: ignore[arg-type]
    assert same(output, tmp_path / "whole")
    assert report.validation is not None
    assert len(encoded) == report.train.documents + report.validation.documents - safe


@pytest.mark.usefixtures("small_batches")
def test_what_a_changed_file_touches_is_done_again(tmp_path: Path, corpus: Path, tokenizer: str) -> None:
    output = tmp_path / "mine"
    with (corpus / "d.csv").open("a") as file:
        # far enough below that work on the rows above is done before the reader gets there
        file.write("".join(f"row {number} of many more words than that\n" for number in range(2000)) + '"never closed')
    with pytest.raises(DataError, match=r"d\.csv: line \d+: not CSV"):
        prepare.prepare([str(corpus)], output, tokenizer=tokenizer, validation=0.3, workers=1)
    folder = shard_folder(partial_folder(output), 0, 1)
    assert {commit.place.source for commit in read_journal(folder)} >= {2, 3}
    (corpus / "d.csv").write_text("text\nmended\nand well\n")
    with pytest.raises(StopError):
        prepare.prepare([str(corpus)], output, tokenizer=tokenizer, validation=0.3, workers=1, progress=stop_after(1))
    kept = read_journal(folder)
    assert {commit.place.source for commit in kept} >= {
        2
    }  # whether the first file's one document has a commit to itself is a race
    assert [commit.place.source for commit in kept[:-1]] == sorted(commit.place.source for commit in kept[:-1])
    assert 3 not in {commit.place.source for commit in kept[:-1]}
    prepare.prepare([str(corpus)], output, tokenizer=tokenizer, validation=0.3, workers=1)
    prepare.prepare([str(corpus)], tmp_path / "whole", tokenizer=tokenizer, validation=0.3, workers=1)
    assert same(output, tmp_path / "whole")


@pytest.mark.usefixtures("small_batches")
def test_other_settings_start_anew(tmp_path: Path, corpus: Path, tokenizer: str) -> None:
    with pytest.raises(StopError):
        prepare.prepare([str(corpus)], tmp_path / "mine", tokenizer=tokenizer, workers=1, progress=stop_after(5))
    for name in ("mine", "whole"):
        prepare.prepare([str(corpus)], tmp_path / name, tokenizer=tokenizer, validation=0.3, workers=1)
    assert same(tmp_path / "mine", tmp_path / "whole")


@pytest.mark.usefixtures("small_batches")
def test_files_that_shrank_are_not_trusted(tmp_path: Path, corpus: Path, tokenizer: str) -> None:
    output = tmp_path / "mine"
    with pytest.raises(StopError):
        prepare.prepare([str(corpus)], output, tokenizer=tokenizer, validation=0.3, workers=1, progress=stop_after(9))
    folder = shard_folder(partial_folder(output), 0, 1)
    os.truncate(folder / "train.bin", (folder / "train.bin").stat().st_size - 1)
    prepare.prepare([str(corpus)], output, tokenizer=tokenizer, validation=0.3, workers=1)
    prepare.prepare([str(corpus)], tmp_path / "whole", tokenizer=tokenizer, validation=0.3, workers=1)
    assert same(output, tmp_path / "whole")


def test_a_published_corpus_is_never_cut_back(tmp_path: Path, corpus: Path, tokenizer: str) -> None:
    """A kill may come when the corpus is published and the shard is still there: they share one file on the disk."""
    output = tmp_path / "mine"
    prepare_shard([str(corpus)], output, (0, 1), tokenizer=tokenizer, workers=1)
    folder = shard_folder(partial_folder(output), 0, 1)
    os.link(folder / "train.bin", tmp_path / "published.bin")
    before = (tmp_path / "published.bin").read_bytes()
    lines = (folder / "journal.jsonl").read_bytes().splitlines(keepends=True)
    record = json.loads(lines[-1])
    record |= {"tokens": [10, 0], "documents": [1, 0], "place": [0, 1, 5], "done": ""}
    files = prepare.list_files([str(corpus)])
    record["sources"] = prepare.sources_digest(files[:1])
    (folder / "journal.jsonl").write_text(json.dumps(record) + "\n")
    with pytest.raises(StopError):
        prepare_shard([str(corpus)], output, (0, 1), tokenizer=tokenizer, workers=1, progress=stop_after(1))
    assert (tmp_path / "published.bin").read_bytes() == before


def test_two_at_once_are_kept_apart(tmp_path: Path, corpus: Path, tokenizer: str) -> None:
    def second(_: PrepareProgress) -> None:
        prepare.prepare([str(corpus)], tmp_path / "mine", tokenizer=tokenizer, workers=1)

    with pytest.raises(DataError, match=r"0-of-1: another process is at work on it"):
        prepare.prepare([str(corpus)], tmp_path / "mine", tokenizer=tokenizer, workers=1, progress=second)


KILLED = """
import sys
from pathlib import Path
from ds_pretrain.data import prepare
from ds_pretrain.data.cache import prepare_cached

reports = 0

def halt(progress):
    global reports
    reports += progress.phase == "encode"
    if reports == 5:
        print("halfway", flush=True)
        sys.stdin.read()

if __name__ == "__main__":
    prepare.PIECE_CHARACTERS = 400
    prepare._COMMIT_SECONDS = 0.0
    if sys.argv[4:] == ["cached"]:
        prepare_cached(
            sys.argv[1], tokenizer_path=sys.argv[3], train_vocab_size=None, validation_fraction=0.3,
            cache_dir=Path(sys.argv[2]), progress=halt,
        )
    else:
        prepare.prepare(
            [sys.argv[1]], Path(sys.argv[2]), tokenizer=sys.argv[3], validation=0.3, workers=1, deduplicate=True,
            progress=halt,
        )
"""


def kill_halfway(folder: Path, *arguments: str) -> None:
    """Starts the script, kills it when five batches are written, and waits until its workers are gone."""
    (folder / "script.py").write_text(KILLED)
    command = [sys.executable, str(folder / "script.py"), *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"halfway\n"
        workers = psutil.Process(process.pid).children(recursive=True)
        assert workers
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)
    assert psutil.wait_procs(workers, timeout=60)[1] == []


def test_a_kill_loses_no_finished_work(tmp_path: Path, corpus: Path, tokenizer: str) -> None:
    output = tmp_path / "out" / "mine"
    kill_halfway(tmp_path, str(corpus), str(output), tokenizer)
    assert [path.name for path in output.parent.iterdir()] == ["mine.partial"]
    folder = shard_folder(partial_folder(output), 0, 1)
    safe = read_journal(folder)[-1]
    assert sum(safe.documents) > 10
    first: list[PrepareProgress] = []
    options = {"tokenizer": tokenizer, "validation": 0.3, "workers": 1, "deduplicate": True}
    prepare.prepare([str(corpus)], output, **options, progress=first.append)  # type: ignore[arg-type]
    assert first[0].tokens > sum(safe.tokens)
    prepare.prepare([str(corpus)], tmp_path / "whole", **options)  # type: ignore[arg-type]
    assert same(output, tmp_path / "whole")
    assert {path.name for path in output.parent.iterdir()} == {
        f"mine{split}.{ending}" for split in ("", "-val") for ending in ("bin", "idx", "manifest.json")
    }
    assert manifest_path(output).is_file()


def test_a_killed_preparation_of_a_run_goes_on_in_the_cache(tmp_path: Path, corpus: Path, tokenizer: str) -> None:
    cache = tmp_path / "cache"
    kill_halfway(tmp_path, str(corpus), str(cache), tokenizer, "cached")
    (partial,) = cache.glob("*.partial")
    safe = read_journal(shard_folder(partial / "entry" / "train.partial", 0, 1))[-1]
    assert sum(safe.documents) > 10
    reports: list[PrepareProgress] = []
    made = prepare_cached(
        str(corpus),
        tokenizer_path=tokenizer,
        train_vocab_size=None,
        validation_fraction=0.3,
        cache_dir=cache,
        progress=reports.append,
    )
    assert reports[0].tokens > sum(safe.tokens)
    prepare.prepare([str(corpus)], tmp_path / "whole", tokenizer=tokenizer, validation=0.3, workers=1)
    assert same(made.train, tmp_path / "whole")
    assert list(cache.iterdir()) == [made.train.parent]


# Publishes again and again, killed before the first file or folder is moved or removed, before the second, and so on.
KILLED_PUBLISHING = """
import os
import shutil
import signal
import sys
from pathlib import Path
from ds_pretrain.data import publish

def dying(action):
    def step(*arguments, **options):
        global left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        return action(*arguments, **options)
    return step

for number in range(100):
    output = Path(sys.argv[1], str(number), "mine")
    shutil.copytree(sys.argv[2], output.with_name("mine.partial"))
    child = os.fork()
    if child == 0:
        left = number
        os.replace, os.rename, shutil.rmtree = dying(os.replace), dying(os.rename), dying(shutil.rmtree)
        publish.publish(output)
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
"""


@pytest.mark.parametrize("count", [1, 2])
def test_whatever_moment_of_publishing_a_kill_picks_the_same_command_ends_it(
    tmp_path: Path, corpus: Path, count: int
) -> None:
    options = {"tokenizer": "train:300", "validation": 0.3, "workers": 1}
    output = tmp_path / "made" / "mine"
    for index in range(count):
        prepare_shard([str(corpus)], output, (index, count), **options)  # type: ignore[arg-type]
    script = [sys.executable, "-c", KILLED_PUBLISHING, str(tmp_path / "killed"), str(partial_folder(output))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run(script, check=True, env=environment)
    publish(output)
    whole = {path.name for path in output.parent.iterdir()}
    folders = sorted((tmp_path / "killed").iterdir(), key=lambda folder: int(folder.name))
    assert {path.name for path in folders.pop().iterdir()} == whole
    halves = 0
    for folder in folders:
        stands = [idx_path(folder / name).is_file() for name in ("mine", "mine-val")]
        halves += stands == [True, False]
        if count > 1:
            publish(folder / "mine")
        elif all(stands):
            with pytest.raises(DataError, match=r"mine\.idx: exists already"):
                prepare.prepare([str(corpus)], folder / "mine", **options)  # type: ignore[arg-type]
        else:
            prepare.prepare([str(corpus)], folder / "mine", **options)  # type: ignore[arg-type]
        assert same(folder / "mine", output), folder
        assert {path.name for path in folder.iterdir()} == whole, folder
    assert halves > 0


def test_what_a_kill_left_half_published_is_not_taken_for_another_corpus(
    tmp_path: Path, corpus: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"tokenizer": tokenizer, "validation": 0.3, "workers": 1}
    output = tmp_path / "mine"
    replace = os.replace

    def stop_between(source: Path, target: Path) -> None:
        if target == idx_path(tmp_path / "mine-val"):
            raise StopError
        replace(source, target)

    monkeypatch.setattr(os, "replace", stop_between)
    with pytest.raises(StopError):
        prepare.prepare([str(corpus)], output, **options)  # type: ignore[arg-type]
    monkeypatch.undo()
    other = {**options, "min_characters": 30}
    with pytest.raises(DataError, match=r"mine\.idx: exists already; choose another output, or replace it"):
        prepare.prepare([str(corpus)], output, **other)  # type: ignore[arg-type]
    prepare.prepare([str(corpus)], output, overwrite=True, **other)  # type: ignore[arg-type]
    prepare.prepare([str(corpus)], tmp_path / "whole", **other)  # type: ignore[arg-type]
    assert same(output, tmp_path / "whole")
    assert not partial_folder(output).exists()
