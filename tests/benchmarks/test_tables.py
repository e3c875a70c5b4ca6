"""Tables of the documentation come from result files, and those in the repository are up to date."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from benchmarks import full_size_goals, tables
from benchmarks.environment import cpu_model, describe_environment
from benchmarks.stabilisers import earlier_content, in_order, run
from benchmarks.table_text import NOTHING
from benchmarks.variants import SWITCHES, VARIANTS, Setting, training_config
from lyra_ns.decoder.config import DecoderConfig
from lyra_ns.evaluation.photo_check import PhotoScores
from lyra_ns.evaluation.runner import METRICS
from lyra_ns.gaussians import GaussianHeadConfig
from lyra_ns.plugin.model_config import LyraModelConfig
from tests.helpers.wall_scenes import write_wall_scenes

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


def forward_row(way: str, num_views: int, ms: float) -> dict:
    """A row of the forward pass at full size."""
    return {"way": way, "num_views": num_views, "ms": ms, "peak_gib": ms / 100, "growth_gib": 1.0}


def write_full_size(folder: Path, **parts: list[dict]) -> None:
    """A result file of the benchmark at full size with these parts."""
    size = {"num_frames": 121, "height": 704, "width": 1280}
    content = {name: {"environment": ENVIRONMENT, "size": size, "rows": rows} for name, rows in parts.items()}
    (folder / "full_size_h200.json").write_text(json.dumps({"parts": content}))


OFFICIAL = "as the official code computes"
FORWARD = [
    *(forward_row(OFFICIAL, views, ms) for views, ms in ((1, 60.0), (6, 1200.0))),
    # a = 20, b = 30
    *(forward_row("fast", views, 20.0 * views**2 + 30.0 * views) for views in (1, 2, 6)),
]


def test_forward_table_has_ways_beside_each_other(tmp_path: Path) -> None:
    """Ratios are to the official way with as many trajectories; what was not measured is a gap."""
    write_full_size(tmp_path, forward=FORWARD)
    text = tables.table_named("full_size_forward", tmp_path)
    first, official, fast = cells(text)
    assert first[1:4] == ["1 trajectory", "2 trajectories", "6 trajectories"]
    assert official == [OFFICIAL, "60.0", NOTHING, "1200", "12.0"]
    assert fast == ["fast", "50.0 (1.20x)", "140", "900 (1.33x)", "9.0"]
    assert text.endswith("GPU X, torch 9.9, commit 0123456789 with changes.")


def test_tables_of_missing_parts_are_empty(tmp_path: Path) -> None:
    """And every table of full size is made from the file in the repository or empty."""
    write_full_size(tmp_path)
    names = [name for name in tables.TABLES if name.startswith("full_size")]
    assert [tables.table_named(name, tmp_path) for name in names] == [""] * len(names)
    document = "<!-- table:full_size_errors -->\nold\n<!-- /table -->\n"
    assert tables.updated(document, tmp_path) == document.replace("old", "")


def test_goals_say_what_was_not_reached(tmp_path: Path) -> None:
    """In both directions, and the part of attention is found from how the times grow."""
    rendering = [
        {"num_gaussians": num, "response": "ray3d", "ms": ms} for num, ms in ((10_000_000, 1), (2_000_000, 5))
    ]
    write_full_size(tmp_path, forward=FORWARD, rendering=rendering, writing=[{"seconds": 1.5}])
    text = tables.table_named("full_size_goals", tmp_path)
    found = {line[0]: line[2:] for line in cells(text)[1:]}
    titles = {goal.part: goal.title for goal in full_size_goals.GOALS}
    assert found["forward pass of six trajectories, exact"] == ["900 ms", "yes"]
    assert found["forward pass without attention (fitted, see below)"] == ["180 ms", "**no**"]
    assert found[titles["rendering"]] == ["200 per second", "**no**"]
    assert found[titles["writing"]] == ["1.5 s", "yes"]
    assert titles["training"] not in found
    assert "80 % of the forward pass" in text


def test_plucker_table_compares_encoders_only(tmp_path: Path) -> None:
    """A cache is no encoder; errors stand below, in percent."""
    rows = [
        {"what": "plain encoder, six views", "ms": 6000.0, "peak_gb": 33.67},
        {"what": "fast encoder, six views, 1 at once", "ms": 1000.0, "peak_gb": 11.0},
        {"what": "repeated cameras, memory", "ms": 2.0, "peak_gb": 1.0},
        {"what": "fast encoder in bfloat16 against float32", "relative_difference": 0.0087},
    ]
    write_full_size(tmp_path, plucker=rows)
    text = tables.table_named("full_size_plucker", tmp_path)
    assert [line[1:] for line in cells(text)[1:]] == [
        ["6000", NOTHING, "33.7"],
        ["1000", "6.00x", "11.0"],
        ["2.0", NOTHING, "1.0"],
    ]
    assert "ours 0.9 %" in text


def test_training_step_stands_beside_the_plain_one(tmp_path: Path) -> None:
    """A step that did not fit says so in place of its time."""
    size = {"V": 6, "targets": 54}
    rows = [
        {"way": "fast", **size, "prune": 0.8, "step_s": 5.0, "peak_gib": 37.4},
        {"way": "plain", **size, "prune": 0.8, "step_s": 6.5, "peak_gib": 31.2},
        {"way": "fast", **size, "error": "no room"},
        {"way": "plain", **size, "prune": 0.0, "step_s": 7.0, "peak_gib": 31.1},
    ]
    write_full_size(tmp_path, training=rows)
    lines = cells(tables.table_named("full_size_training", tmp_path))
    assert lines[1] == ["6", "54", "80 %", "5.00", "6.50", "1.30x", "37.4", "31.2"]
    assert lines[2][2:] == ["0 %", f"{NOTHING} (out of memory)", "7.00", NOTHING, NOTHING, "31.1"]


def test_rendering_writing_errors_and_low_precision(tmp_path: Path) -> None:
    """Each shows its numbers in the units of its titles."""
    render = {"num_gaussians": 2_044_415, "response": "ray3d", "ms": 4.0, "peak_gib": 1.16}
    form = {"form": "fp8", "group": "novel", "psnr": 27.12345, "lpips": 0.1, "psnr_against_first": 51.26}
    write_full_size(
        tmp_path,
        rendering=[render],
        writing=[{"num_gaussians": 2_044_415, "seconds": 0.298}],
        errors=[
            {"way": "fast", "num_views": 1, "relative_error": 0.0093},
            {"way": OFFICIAL, "num_views": 1, "relative_error": 0.0186},
        ],
        low_precision=[form | {"form": "cudnn", "psnr_against_first": None}, form],
    )
    made = {name: tables.table_named(f"full_size_{name}", tmp_path) for name in ("rendering", "writing")}
    assert cells(made["rendering"])[1] == ["2 044 415", "3DGUT", "4.00", "250", "1.2"]
    assert "2 044 415 Gaussians from main memory: 0.30 s" in made["writing"]
    errors = tables.table_named("full_size_errors", tmp_path)
    assert cells(errors)[1] == ["fast", "9.3e-03"]
    assert "causal-conv1d not installed" in errors
    assert "| at most 1 | 0.5 | yes |" in tables.table_named("full_size_goals", tmp_path)
    exact, eight_bits = cells(tables.table_named("full_size_low_precision", tmp_path))[1:]
    assert exact[-1] == NOTHING
    assert eight_bits == ["fp8", "novel", "27.123", "0.1000", "51.3"]


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


@pytest.mark.slow
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
