import json

import pytest

from backend.cli import main


def test_bench_attention_prints_one_json_object_last(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = [
        "--tokens",
        "96",
        "--layers",
        "2",
        "--heads",
        "4",
        "--key-heads",
        "2",
        "--width",
        "64",
        "--repeats",
        "1",
    ]
    assert main(["bench", "attention", *sizes, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (figures["tokens"], figures["layers"], figures["heads"]) == (96, 2, 4)
    assert figures["max_abs_diff"] < 1e-4
    assert figures["time_ratio"] > 0
    assert figures["overhead"] > 0
    assert figures["peak_memory_ratio"] > 0


def test_bench_annotate_prints_the_table_of_ablations(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "annotate", "--scenes", "1"]) == 0
    out = capsys.readouterr().out
    for step in ("naive", "+ regularisation", "+ point pair", "+ questions", "best", "oracle (true boxes)"):
        assert f"| {step} |" in out
    assert "handson_ratio" in out


def test_help_says_what_is_compared(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["bench", "attention", "--help"])
    out = capsys.readouterr().out
    assert "--key-heads" in out
    assert "each in its own process" in " ".join(out.split())
