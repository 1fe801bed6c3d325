from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# Reads a document as `prepare` does, and prints how much more memory that took than importing, in MB.
READ = """
import resource, sys
from ds_pretrain.data.documents import LeftOut, Selection, choose_documents
from ds_pretrain.data.encoding import cut
from ds_pretrain.data.sources import list_files

files = list_files([sys.argv[1]])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
(document,) = choose_documents(files, Selection(), left_out=LeftOut())
characters = sum(len(piece) for piece, _ in cut(document.text))
assert characters == document.characters == int(sys.argv[2])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
CHARACTERS = 400_000_000


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux")
@pytest.mark.parametrize("ending", [".txt", ".txt.zst"])
def test_a_document_larger_than_memory_should_hold_is_read_in_blocks(tmp_path: Path, ending: str) -> None:
    import pyarrow as pa

    path = tmp_path / f"a{ending}"
    line = b"x" * 999 + b"\n"
    with path.open("wb") if ending == ".txt" else pa.CompressedOutputStream(str(path), "zstd") as file:
        for _ in range(CHARACTERS // 1_000_000):
            file.write(line * 1000)
    command = [sys.executable, "-c", READ, str(path), str(CHARACTERS)]
    assert float(subprocess.run(command, check=True, capture_output=True, text=True).stdout) < 150
