from __future__ import annotations

import os
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from deepspeed.runtime.data_pipeline.data_sampling.indexed_dataset import MMapIndexedDataset, MMapIndexedDatasetBuilder
from hypothesis import given
from hypothesis import strategies as st

from ds_pretrain.data.indexed import TokenFile, bin_path, idx_path, token_dtype
from ds_pretrain.data.token_writer import TokenFileWriter
from ds_pretrain.errors import DataError

DOCUMENTS = [[1, 2, 3], [4], [5, 6]]


def write_by_hand(
    prefix: Path,
    code: int,
    dtype: str,
    sequences: list[list[int]] | None = None,
    bounds: list[int] | None = None,
    trailing: bytes = b"",
) -> Path:
    """The layout as Megatron writes it, independent of the code under test."""
    sequences = DOCUMENTS if sequences is None else sequences
    bounds = list(range(len(sequences) + 1)) if bounds is None else bounds
    size = np.dtype(dtype).itemsize
    lengths = [len(sequence) for sequence in sequences]
    pointers = [sum(lengths[:index]) * size for index in range(len(lengths))]
    flat = [token for sequence in sequences for token in sequence]
    Path(f"{prefix}.bin").write_bytes(np.array(flat, dtype=dtype).tobytes())
    Path(f"{prefix}.idx").write_bytes(
        b"MMIDIDX\x00\x00"
        + struct.pack("<Q", 1)
        + struct.pack("<B", code)
        + struct.pack("<QQ", len(sequences), len(bounds))
        + struct.pack(f"<{len(lengths)}i", *lengths)
        + struct.pack(f"<{len(pointers)}q", *pointers)
        + struct.pack(f"<{len(bounds)}q", *bounds)
        + trailing
    )
    return prefix


def write_ours(prefix: Path, documents: list[list[int]], dtype: str) -> Path:
    with TokenFileWriter(prefix, dtype) as writer:
        for document in documents:
            writer.append(np.array(document, dtype=np.int64))
    return prefix


@pytest.mark.parametrize(
    ("code", "dtype"),
    [
        (1, "uint8"),
        (2, "int8"),
        (3, "int16"),
        (4, "int32"),
        (5, "int64"),
        (6, "uint16"),  # DeepSpeed
        (7, "uint32"),  # DeepSpeed
        (8, "uint16"),  # Megatron, gpt-neox
        (8, "uint64"),  # DeepSpeed
    ],
)
def test_every_dtype_code_is_read(tmp_path: Path, code: int, dtype: str) -> None:
    corpus = TokenFile.open(write_by_hand(tmp_path / "corpus", code, dtype))
    assert corpus.tokens.tolist() == [1, 2, 3, 4, 5, 6]
    assert corpus.dtype == np.dtype(dtype)
    assert corpus.document_lengths.tolist() == [3, 1, 2]
    assert (corpus.num_tokens, corpus.num_documents) == (6, 3)


@pytest.mark.parametrize("code", [6, 7])
def test_floating_point_codes_of_megatron_are_refused(tmp_path: Path, code: int) -> None:
    with pytest.raises(DataError, match="holds floating-point numbers"):
        TokenFile.open(write_by_hand(tmp_path / "corpus", code, "float64"))


def test_documents_of_several_sequences_are_added_up(tmp_path: Path) -> None:
    corpus = TokenFile.open(write_by_hand(tmp_path / "corpus", 4, "int32", bounds=[0, 2, 2, 3]))
    assert corpus.document_lengths.tolist() == [4, 0, 2]
    assert corpus.num_documents == 3


def test_multimodal_modes_and_absent_document_bounds_are_read(tmp_path: Path) -> None:
    modes = TokenFile.open(write_by_hand(tmp_path / "modes", 4, "int32", trailing=b"\x00" * 3))
    absent = TokenFile.open(write_by_hand(tmp_path / "absent", 4, "int32", bounds=[0]))
    assert modes.document_lengths.tolist() == absent.document_lengths.tolist() == [3, 1, 2]


def test_deepspeed_reads_our_int32_files(tmp_path: Path) -> None:
    dataset = MMapIndexedDataset(str(write_ours(tmp_path / "corpus", DOCUMENTS, "int32")), skip_warmup=True)
    assert [dataset[index].tolist() for index in range(len(dataset))] == DOCUMENTS
    assert dataset.doc_idx.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_files_of_deepspeeds_builder_are_read(tmp_path: Path, dtype: type) -> None:
    prefix = tmp_path / "corpus"
    builder = MMapIndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    for document in DOCUMENTS:
        builder.add_item_numpy(np.array(document, dtype=dtype))
        builder.end_document()
    builder.finalize(f"{prefix}.idx")
    corpus = TokenFile.open(prefix)
    assert corpus.tokens.tolist() == [1, 2, 3, 4, 5, 6]
    assert corpus.document_lengths.tolist() == [3, 1, 2]


@pytest.mark.parametrize(("dtype", "bounds"), [("uint16", None), ("uint16", [0, 1, 3, 5]), ("uint64", [0])])
def test_empty_sequences_at_the_end_leave_the_type_known(tmp_path: Path, dtype: str, bounds: list[int] | None) -> None:
    corpus = TokenFile.open(write_by_hand(tmp_path / "corpus", 8, dtype, [[], [1, 2], [], [3], []], bounds))
    assert corpus.dtype == np.dtype(dtype)
    assert corpus.tokens.tolist() == [1, 2, 3]


def test_the_document_of_a_token_is_found(tmp_path: Path) -> None:
    sequences = [[], [1, 2], [], [3], [4], []]
    alone = TokenFile.open(write_by_hand(tmp_path / "alone", 4, "int32", sequences, [0]))
    assert [alone.document_at(token) for token in range(4)] == [1, 1, 3, 4]
    joined = TokenFile.open(write_by_hand(tmp_path / "joined", 4, "int32", sequences, [0, 0, 2, 4, 4, 6]))
    assert [joined.document_at(token) for token in range(4)] == [1, 1, 2, 4]


def test_opening_does_not_read_the_index(tmp_path: Path) -> None:
    """10⁹ documents: a sparse index of 20 GB with its ends alone, which would not be one if it were read."""
    count, last = 10**9, 2_000_000
    with idx_path(tmp_path / "corpus").open("wb") as file:
        file.write(struct.pack("<9sQBQQ", b"MMIDIDX\x00\x00", 1, 8, count, count + 1))
        for entry, after in ((struct.pack("<i", 7), 4), (struct.pack("<q", last), 12)):
            file.seek(34 + after * count - len(entry))
            file.write(entry)
        file.seek(34 + 20 * count)
        file.write(struct.pack("<q", count))
    with bin_path(tmp_path / "corpus").open("wb") as file:
        file.truncate(last + 14)
    tracemalloc.start()
    corpus = TokenFile.open(tmp_path / "corpus")
    found = corpus.document_at(corpus.num_tokens - 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (corpus.num_documents, corpus.num_tokens, found) == (count, last // 2 + 7, count - 1)
    assert peak < 1 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="megatron-core comes for Linux")
@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "int32", "int64", "uint16"])
def test_megatron_reads_our_files_and_writes_the_very_same(tmp_path: Path, dtype: str) -> None:
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder

    ours, theirs = write_ours(tmp_path / "ours", DOCUMENTS, dtype), tmp_path / "theirs"
    dataset = IndexedDataset(str(ours))
    assert [dataset[index].tolist() for index in range(len(dataset))] == DOCUMENTS
    assert dataset.document_indices.tolist() == [0, 1, 2, 3]
    builder = IndexedDatasetBuilder(f"{theirs}.bin", dtype=getattr(np, dtype))
    for document in DOCUMENTS:
        builder.add_item(torch.tensor(document))
        builder.end_document()
    builder.finalize(f"{theirs}.idx")
    assert bin_path(theirs).read_bytes() == bin_path(ours).read_bytes()
    assert idx_path(theirs).read_bytes() == idx_path(ours).read_bytes()
    assert TokenFile.open(theirs).dtype == np.dtype(dtype)


@pytest.mark.parametrize(("code", "dtype"), [(1, "uint8"), (4, "int32"), (5, "int64"), (8, "uint16")])
def test_written_bytes_are_megatrons_layout(tmp_path: Path, code: int, dtype: str) -> None:
    theirs = write_by_hand(tmp_path / "theirs", code, dtype)
    ours = write_ours(tmp_path / "ours", DOCUMENTS, dtype)
    assert bin_path(ours).read_bytes() == bin_path(theirs).read_bytes()
    assert idx_path(ours).read_bytes() == idx_path(theirs).read_bytes()


@given(documents=st.lists(st.lists(st.integers(0, 65_535)), min_size=1).filter(any))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, documents: list[list[int]]) -> None:
    corpus = TokenFile.open(write_ours(tmp_path_factory.mktemp("written") / "corpus", documents, "uint16"))
    assert corpus.tokens.tolist() == [token for document in documents for token in document]
    assert corpus.document_lengths.tolist() == [len(document) for document in documents]


def test_index_entries_are_right_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = write_ours(tmp_path / "whole", DOCUMENTS * 5, "int32")
    monkeypatch.setattr("ds_pretrain.data.token_writer._INDEX_BLOCK", 4)
    blocks = write_ours(tmp_path / "blocks", DOCUMENTS * 5, "int32")
    assert idx_path(blocks).read_bytes() == idx_path(whole).read_bytes()


def test_a_document_may_be_written_in_pieces(tmp_path: Path) -> None:
    with TokenFileWriter(tmp_path / "corpus", "uint16") as writer:
        writer.write(np.array([1, 2], dtype=np.uint16))
        writer.write(np.array([3], dtype=np.uint16))
        writer.end_document()
        writer.append(np.array([4], dtype=np.uint16))
        assert (writer.num_documents, writer.num_tokens) == (2, 4)
    assert TokenFile.open(tmp_path / "corpus").document_lengths.tolist() == [3, 1]


def write_and_interrupt(prefix: Path, visible_meanwhile: bool) -> None:
    with TokenFileWriter(prefix, "int32") as writer:
        writer.append(np.array([9]))
        assert bin_path(prefix).exists() == idx_path(prefix).exists() == visible_meanwhile
        raise KeyboardInterrupt


def test_nothing_appears_before_the_end_or_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_and_interrupt(tmp_path / "corpus", visible_meanwhile=False)
    assert list(tmp_path.iterdir()) == []


def test_an_error_leaves_the_corpus_of_before(tmp_path: Path) -> None:
    prefix = write_ours(tmp_path / "corpus", DOCUMENTS, "int32")
    with pytest.raises(KeyboardInterrupt):
        write_and_interrupt(prefix, visible_meanwhile=True)
    assert TokenFile.open(prefix).tokens.tolist() == [1, 2, 3, 4, 5, 6]


KILLED = """
import sys
from pathlib import Path
import numpy as np
from ds_pretrain.data.token_writer import TokenFileWriter

with TokenFileWriter(Path(sys.argv[1]), np.uint16) as writer:
    writer.append(np.ones(3_000_000))
    print("halfway", flush=True)
    sys.stdin.read()
"""


def test_what_a_kill_leaves_is_kept_from_others_and_then_written_over(tmp_path: Path) -> None:
    prefix = tmp_path / "corpus"
    command = [sys.executable, "-c", KILLED, str(prefix)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"halfway\n"
        with pytest.raises(DataError, match=r"corpus\.bin: another process is writing it"):
            write_ours(prefix, DOCUMENTS, "int32")
        process.kill()
    assert not bin_path(prefix).exists()
    write_ours(prefix, DOCUMENTS, "int32")
    assert TokenFile.open(prefix).tokens.tolist() == [1, 2, 3, 4, 5, 6]
    assert {path.name for path in tmp_path.iterdir()} == {"corpus.bin", "corpus.idx"}


def test_new_files_have_the_users_permissions(tmp_path: Path) -> None:
    prefix = write_ours(tmp_path / "corpus", DOCUMENTS, "int32")
    (tmp_path / "plain").touch()
    assert bin_path(prefix).stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_token_ids_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"document 1: token ids from 5 to 70000 do not fit uint16"):
        write_ours(tmp_path / "corpus", [[1], [5, 70_000]], "uint16")
    assert list(tmp_path.iterdir()) == []


def test_types_without_a_megatron_code_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be stored as uint32"):
        TokenFileWriter(tmp_path / "corpus", "uint32")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    writer = TokenFileWriter(tmp_path / "corpus", "int32")
    writer._partial.symlink_to("/dev/full")
    with pytest.raises(DataError, match=r"corpus\.bin: cannot be written: No space left on device"), writer:
        writer.append(np.zeros(1 << 20, dtype=np.int32))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65_499, np.uint16), (65_500, np.int32)])
def test_token_dtype_follows_megatrons_rule(vocab_size: int, dtype: type) -> None:
    assert token_dtype(vocab_size) == dtype


def cut_file(path: Path, by: int) -> None:
    os.truncate(path, path.stat().st_size - by)


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: bin_path(p).unlink(), r"corpus\.bin: not found; .*ds-pretrain prepare"),
        (lambda p: idx_path(p).unlink(), r"corpus\.idx: not found"),
        (
            lambda p: cut_file(bin_path(p), 4),
            r"corpus\.bin: found 20 bytes where its \.idx, with dtype code 4, .* and ends at 24 \(int32\)",
        ),
        (lambda p: cut_file(idx_path(p), 1), r"corpus\.idx: truncated or damaged: found 101 bytes .* make 102"),
        (lambda p: os.truncate(idx_path(p), 20), r"corpus\.idx: truncated at 20 bytes"),
        (lambda p: os.truncate(idx_path(p), 0), r"corpus\.idx: found b'' at its start"),
        (lambda p: overwrite(idx_path(p), 0, b"TNTIDX"), r"corpus\.idx: found .*TNTIDX.*--dataset-impl mmap"),
        (lambda p: overwrite(idx_path(p), 9, b"\x02"), r"found index version 2; allowed: 1"),
        (lambda p: overwrite(idx_path(p), 17, b"\x09"), r"found dtype code 9; allowed: 1 to 8"),
        (lambda p: overwrite(idx_path(p), 46, b"\x04"), r"corpus\.bin: found 24 bytes .* begins at byte 4"),
        (lambda p: overwrite(idx_path(p), 62, b"\x00"), r"corpus\.bin: found 24 bytes .* ends at 8 \(int32\)"),
        (lambda p: overwrite(idx_path(p), 70, b"\x01"), r"document bounds run from 1 to 3; allowed: from 0 to 3"),
        (lambda p: overwrite(idx_path(p), 94, b"\x02"), r"document bounds run from 0 to 2; allowed: from 0 to 3"),
    ],
)
def test_damage_is_named(tmp_path: Path, damage: object, message: str) -> None:
    prefix = write_ours(tmp_path / "corpus", DOCUMENTS, "int32")
    assert callable(damage)
    damage(prefix)
    with pytest.raises(DataError, match=message):
        TokenFile.open(prefix)


def test_a_prefix_with_its_ending_is_explained(tmp_path: Path) -> None:
    prefix = write_ours(tmp_path / "corpus", DOCUMENTS, "int32")
    with pytest.raises(DataError, match="give the path without the ending"):
        TokenFile.open(bin_path(prefix))


def test_an_empty_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no tokens"):
        TokenFile.open(write_ours(tmp_path / "none", [], "int32"))
    with pytest.raises(DataError, match="holds no tokens"):
        TokenFile.open(write_ours(tmp_path / "empty", [[]], "int32"))
