from pathlib import Path

from model.weights.files import sample_hash

CONTENT = bytes(range(256)) * 9000  # 2.3 MB


def test_large_files_of_one_size_are_told_apart_by_samples(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    file.write_bytes(CONTENT)
    before = sample_hash(file)
    for place in (0, len(CONTENT) // 2, len(CONTENT) - 9000):
        file.write_bytes(CONTENT[:place] + bytes(9000) + CONTENT[place + 9000 :])
        assert sample_hash(file) != before
