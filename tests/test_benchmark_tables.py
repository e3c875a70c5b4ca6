"""Tables of the documentation come from result files, and those in the repository are up to date."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from wall_scenes import write_wall_scenes

from benchmarks import tables
from benchmarks.environment import cpu_model, describe_environment
from benchmarks.stabilisers import earlier_content, in_order, run
from benchmarks.table_text import NOTHING
from benchmarks.variants import SWITCHES, VARIANTS, Setting, training_config
from lyra_ns.decoder_config import DecoderConfig
from lyra_ns.evaluation.runner import METRICS
from lyra_ns.evaluation.stereo_photo import PhotoScores
from lyra_ns.gaussians import GaussianHeadConfig
from lyra_ns.plugin.model_config import LyraModelConfig

ENVIRONMENT = {"device": "GPU X", "versions": {"torch": "9.9"}, "commit": "0123456789abcdef+changes"}


def image_row(method: str, group: str = "novel", **values: float | None) -> dict:
    """A row as the evaluation protocol writes it."""
    row = {"group": group, "num_trajectories": 6, "method": method, "num_views": 24, "psnr_std": 9.0}
    return row | dict.fromkeys(METRICS, 0.5) | values


def write(path: Path, **content: object) -> None:
    """A result file."""
    path.write_text(json.dumps({"environment": ENVIRONMENT, **content}))


def cells(text: str) -> list[list[str]]:
    """Cells of the lines of a markdown table, without the rule."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[part.strip() for part in line.strip("|").split("|")] for line in lines[:1] + lines[2:]]


def test_held_out_of_one_file_shows_values_and_gaps(tmp_path: Path) -> None:
    write(
        tmp_path / "held_out.json",
        rows=[image_row("lyra", psnr=26.126), image_row("mean colour", depth_error=None)],
    )
    text = tables.held_out_table(tmp_path)
    assert cells(text)[1] == ["novel", "6", "lyra", "24", "26.13", "0.500", "0.500", "0.500"]
    assert cells(text)[2][-1] == NOTHING
    assert text.endswith("\n\nGPU X, torch 9.9, commit 0123456789 with changes.")


def test_held_out_of_several_seeds_shows_mean_and_spread(tmp_path: Path) -> None:
    for seed, value in enumerate((25.0, 26.0, 27.0)):
        write(tmp_path / f"held_out_seed{seed}.json", rows=[image_row("lyra", psnr=value)])
    text = tables.held_out_table(tmp_path)
    assert cells(text)[1][4] == "26.00 ± 1.00"
    assert "over 3 seeds" in text


def test_seeds_must_have_been_evaluated_alike(tmp_path: Path) -> None:
    write(tmp_path / "held_out_seed0.json", rows=[image_row("lyra"), image_row("mean colour")])
    write(tmp_path / "held_out_seed1.json", rows=[image_row("lyra")])
    with pytest.raises(ValueError, match="mean colour"):
        tables.held_out_table(tmp_path)


def write_stabilisers(folder: Path) -> None:
    """Two variants under two whole seeds; one run gave no finite PSNR."""
    values = {("all on", 0): 21.0, ("all on", 1): 22.0, ("all off", 0): 15.0, ("all off", 1): None}
    values[("all on", 2)] = 30.0  # the other variant has no such seed yet
    runs = [
        {
            "variant": variant,
            "seed": seed,
            "measured": [
                image_row("lyra", "trajectories", psnr=99.0),
                image_row("lyra", psnr=psnr),
            ],
        }
        for (variant, seed), psnr in values.items()
    ]
    floors = [image_row("mean colour", "trajectories"), image_row("mean colour", psnr=19.0)]
    setting = {field.name: field.default for field in fields(Setting)}
    write(folder / "stabilisers.json", rows=runs, floors=floors, setting=setting)


def test_stabilisers_show_held_out_paths_and_failed_runs(tmp_path: Path) -> None:
    write_stabilisers(tmp_path)
    text = tables.stabilisers_table(tmp_path)
    assert "over 2 training seeds" in text
    rows = {line[0]: line[1] for line in cells(text)}
    assert rows == {
        "stabilisers": "PSNR dB",
        "all on": "21.50 ± 0.71",
        "all off": "15.00 (1 failed)",
        "no decoder: mean colour": "19.00",
    }


def test_photo_shows_every_score(tmp_path: Path) -> None:
    scores = {
        name: dict.fromkeys((field.name for field in fields(PhotoScores)), 0.25)
        for name in tables.PHOTO_TITLES
    }
    scores["reconstruction"]["psnr"] = 18.5
    write(tmp_path / "photo_check.json", scores=scores)
    lines = cells(tables.photo_table(tmp_path))
    assert [line[0] for line in lines[1:]] == list(tables.PHOTO_TITLES.values())
    assert lines[2][1:] == ["18.50", "0.250", "0.25", "0.250"]


def test_training_shows_quantities_with_their_units(tmp_path: Path) -> None:
    rows = [
        {"quantity": "step", "value": 48.8, "unit": "ms"},
        {"quantity": "memory", "value": 23.0, "unit": "GB"},
    ]
    flat = {"device": "GPU Y", "torch": "2.11", "commit": "80eaa60"}
    (tmp_path / "train_small_h200.json").write_text(json.dumps({"environment": flat, "rows": rows}))
    text = tables.training_table(tmp_path)
    assert cells(text)[1:] == [["step", "48.8 ms"], ["memory", "23 GB"]]
    assert text.endswith("GPU Y, torch 2.11, commit 80eaa60.")


def test_documents_get_their_tables_and_nothing_else_changes(tmp_path: Path) -> None:
    write_stabilisers(tmp_path)
    made = tables.stabilisers_table(tmp_path)
    text = "before\n<!-- table:stabilisers -->\nold\n<!-- /table -->\n`<!-- table:none -->` after\n"
    expected = text.replace("old", made)
    assert tables.updated(text, tmp_path) == expected
    assert tables.updated(expected, tmp_path) == expected
    twice = text + text
    assert tables.updated(twice, tmp_path) == expected + expected


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("<!-- table:nonsense -->\n<!-- /table -->\n", "no table is called nonsense"),
        ("<!-- table:stabilisers -->\n", "has no end"),
        ("<!-- /table -->\n", "pairs"),
        ("<!-- table:stabilisers -->\n<!-- table:stabilisers -->\n<!-- /table -->\n", "pairs"),
    ],
)
def test_wrong_markers_are_errors(tmp_path: Path, text: str, problem: str) -> None:
    write_stabilisers(tmp_path)
    with pytest.raises(ValueError, match=problem):
        tables.updated(text, tmp_path)


def test_missing_results_say_where_they_come_from(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"benchmarks/README\.md"):
        tables.photo_table(tmp_path)


def test_check_finds_stale_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_stabilisers(tmp_path)
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    (tmp_path / "README.md").write_text("<!-- table:stabilisers -->\n<!-- /table -->\n")
    with pytest.raises(SystemExit, match=r"README\.md"):
        tables.main(check=True)
    tables.main()
    tables.main(check=True)


def test_documents_are_found(tmp_path: Path) -> None:
    for name in ("README.md", "docs/deep/page.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert tables.documents(tmp_path) == [tmp_path / "README.md", tmp_path / "docs/deep/page.md"]


def test_tables_in_the_repository_are_up_to_date() -> None:
    assert tables.stale_documents(tables.ROOT, tables.RESULTS) == []


def test_each_variant_differs_from_all_on_in_its_own_switch_only() -> None:
    """And `all off` has the paper's head, embedding and losses on single Gaussians."""
    configs = {
        name: training_config(Setting(), switched_off, 0, Path("data")).pipeline.model
        for name, switched_off in VARIANTS.items()
    }
    switched = {name: differences(configs["all on"], config) for name, config in configs.items()}
    assert switched["all on"] == set()
    for name in SWITCHES:
        assert switched[f"without {name}"]
    alone = [switched[f"without {name}"] for name in SWITCHES]
    assert sum(map(len, alone)) == len(set().union(*alone)) == len(switched["all off"])
    everything_off = configs["all off"]
    assert everything_off.decoder.head == GaussianHeadConfig()
    paper = DecoderConfig()
    assert everything_off.decoder.init == paper.init
    assert everything_off.decoder.input_statistics == paper.input_statistics
    assert everything_off.warm_start_steps == LyraModelConfig().warm_start_steps
    assert everything_off.loss.attributes == LyraModelConfig().loss.attributes


def differences(left: LyraModelConfig, right: LyraModelConfig) -> set[str]:
    """Names of the settings of model, losses, decoder and head that differ."""
    pairs = {
        "loss": (left.loss, right.loss),
        "decoder": (left.decoder, right.decoder),
        "head": (left.decoder.head, right.decoder.head),
    }
    found = {
        f"{part}.{field.name}"
        for part, (one, other) in pairs.items()
        for field in fields(one)
        if field.name != "head" and getattr(one, field.name) != getattr(other, field.name)
    }
    return found | ({"warm_start_steps"} if left.warm_start_steps != right.warm_start_steps else set())


def test_a_run_trains_and_measures_on_held_out_paths(tmp_path: Path) -> None:
    data = write_wall_scenes(tmp_path / "walls")
    setting = Setting(decoder_width=64, decoder_depth=1, cell_size=8, steps=2, warm_start_steps=1)
    threads = torch.get_num_threads()
    row = run(setting, "all on", 0, data)
    torch.set_num_threads(threads)
    novel = tables.novel_row(row["measured"])
    assert novel["method"] == "lyra"
    assert novel["num_trajectories"] == 3
    assert 0 < novel["psnr"] < 60
    assert novel["depth_error"] > 0


def test_results_of_another_setting_are_kept_apart(tmp_path: Path) -> None:
    output = tmp_path / "stabilisers.json"
    assert earlier_content(output, Setting()) is None
    write_stabilisers(tmp_path)
    content = earlier_content(output, Setting())
    assert content is not None
    assert len(content["rows"]) == 5
    order = [(row["variant"], row["seed"]) for row in in_order(content["rows"][::-1])]
    assert order == [("all on", 0), ("all on", 1), ("all on", 2), ("all off", 0), ("all off", 1)]
    with pytest.raises(ValueError, match="--output"):
        earlier_content(output, Setting(steps=7))


def test_the_environment_names_processor_versions_and_commit(tmp_path: Path) -> None:
    described = describe_environment("cpu")
    assert described["threads"] == torch.get_num_threads()
    assert {"device", "versions", "commit"} <= described.keys()
    description = tmp_path / "cpuinfo"
    description.write_text("model name\t: Fast 9\nmodel\t: 5\ncpu family : 6\n\nmodel name : Slow 1\n")
    assert cpu_model(description) == "Fast 9, family 6, model 5"
    assert cpu_model(tmp_path / "nothing") is None
