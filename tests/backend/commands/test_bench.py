import json
from pathlib import Path

import pytest
from PIL import Image as PILImage

from backend.bench.faults import KINDS
from backend.bench.faults import cases as faults
from backend.commands.cli import main
from model.bench.noc import drawn


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
    assert "naive_over_ours" in out


def test_bench_click_says_where_a_clicks_time_goes(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--models", "builtin", "--megapixels", "0.1", "0.2", "--cold", "2", "--repeats", "1"]
    assert main(["bench", "click", *sizes, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [(row["model"], row["megapixels"]) for row in figures["rows"]] == [
        ("builtin", 0.1),
        ("builtin", 0.2),
    ]
    assert figures["encodes_per_image"] == 1
    assert all(figures[key] > 0 for key in ("server_over_decoder", "cold_over_encoder", "objects20_over_1"))
    for row in figures["rows"]:
        first, click = row["first_click_ms"], row["click_ms"]
        assert {"fetch", "decode file", "hash pixels", "encode"} < first.keys()
        assert not {"fetch", "decode file", "hash pixels", "encode"} & click.keys()
        stages = {"parse", "look up", "decode", "upsample", "obey", "encode mask", "evidence", "json", "rest"}
        assert click.keys() == stages
        assert sum(click.values()) == pytest.approx(row["ms"]["click"], rel=0.5)


def test_bench_click_refuses_sizes_it_cannot_measure(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "click", "--cold", "1"]) == 2
    assert "--cold must be 2 or more" in capsys.readouterr().err


def test_bench_prelabel_compares_a_run_with_the_bare_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "prelabel", "--images", "8", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["images"] == 8
    assert figures["overhead"] > figures["overhead_over_pipeline"] > 0.5
    assert figures["images_per_second"] > 0
    assert figures["rss_mb"] > 50
    assert figures["rss_mb_per_1000_images"] is None  # too few to tell


def test_help_says_what_is_compared(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["bench", "attention", "--help"])
    out = capsys.readouterr().out
    assert "--key-heads" in out
    assert "each in its own process" in " ".join(out.split())


def test_bench_noc_plays_on_a_folder_or_on_drawn_scenes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "noc", "--scenes", "1", "--seed", "5", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["data"] == "drawn, seed 5"
    assert 1 <= figures["noc85"] <= figures["noc90"] <= 20
    assert 0 <= figures["failed85"] <= figures["failed90"] <= 1
    assert 0 < figures["iou1"] <= 1
    for name, value in (("images", 200), ("masks", 1)):
        (tmp_path / name).mkdir()
        PILImage.new("L", (64, 48), value).save(tmp_path / name / "a.png")
    assert main(["bench", "noc", str(tmp_path)]) == 0
    assert "noc85" in capsys.readouterr().out


def test_bench_noc_counts_what_predictions_save(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "noc", "--scenes", "1", "--seed", "6", "--predictions", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert 0 <= figures["median_scene_from_prediction"] <= 20 * figures["objects"]
    assert figures["objects"] <= figures["median_scene_from_nothing"] <= 20 * figures["objects"]
    assert main(["bench", "noc", str(tmp_path), "--predictions"]) == 2
    assert "names" in capsys.readouterr().err


def test_bench_noc_mends_masks_that_are_wrong_on_purpose(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "noc", "--scenes", "2", "--seed", "1", "--faults", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    kinds = {each["kind"]: each for each in figures["kinds"]}
    assert set(kinds) == set(KINDS)
    assert (
        figures["cases"] == sum(each["cases"] for each in kinds.values()) - kinds["another object"]["cases"]
    )
    for name in ("two objects", "missed part", "bite", "spill"):
        assert kinds[name]["median"] <= 2
    assert 0 <= figures["touched"] <= figures["within2"] <= 1
    assert main(["bench", "noc", "--faults", "--predictions"]) == 2
    assert "ask for one" in capsys.readouterr().err


def test_faults_are_what_they_are_called() -> None:
    (_, _, cases), *_ = faults((("a", sample) for sample in drawn(1, 1)), 1)
    assert {case.kind for case in cases} == set(KINDS)
    for case in cases:
        neighbour = case.others[0]
        held, added = (case.mask & case.truth), (case.mask & ~case.truth)
        whole, none_added = (held == case.truth).all(), not added.any()
        match case.kind:
            case "two objects":
                assert (case.mask == (case.truth | neighbour)).all()
            case "missed part" | "bite":
                assert none_added
                assert 0.5 < held.sum() / case.truth.sum() < 0.8
            case "into a neighbour":
                assert whole
                assert 0.4 < (added & neighbour).sum() / neighbour.sum() < 0.6
            case "spill":
                assert whole
                assert 0.25 <= added.sum() / case.truth.sum() < 0.5
            case _:
                assert (case.mask == neighbour).all()


def test_bench_noc_says_what_a_folder_must_hold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "noc", str(tmp_path)]) == 2
    assert "masks/*.png" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="0"):
        main(["bench", "noc", "--help"])
    assert "0 is no object" in capsys.readouterr().out
