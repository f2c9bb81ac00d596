"""Presets and overrides to cases: order, duplicates, selectors, and errors that name file, line and key."""

from dataclasses import fields
from pathlib import Path

import pytest

from bench.measure.telemetry import ENERGY_WINDOW_S
from bench.sweep.axes import Axes, Block, Preset
from bench.sweep.cases import expand, max_batch_cases
from bench.sweep.preset_file import _KEYS
from bench.sweep.presets import load_preset, preset_names
from bench.sweep.rules import RULES
from bench.types import Settings
from resnet.models.table import NETWORKS
from resnet.paths import PATHS

GOOD = """\
summary = "a test"

[settings]
confidence = 0.1  # wide
seed = 3

[[sweep]]
models = ["resnet18"]
modes = ["infer"]
precisions = ["fp32"]
batch_sizes = [
    1,
    2,
]
device = "cpu"

[[sweep]]
models = ["resnet50"]
modes = ["infer"]
precisions = ["fp32"]
batch_sizes = [1]
paths = ["eager"]
device = "cuda"
"""
FIFTY = '["resnet50"]'
ALL = ", ".join(NETWORKS)
BLOCK = GOOD[GOOD.rindex("[[sweep]]") :]


def preset(*blocks: Block) -> Preset:
    return Preset(name="test", summary="a test", settings=Settings(), blocks=blocks)


def block(
    *,
    models: tuple[str, ...] = ("resnet18",),
    modes: tuple[str, ...] = ("infer",),
    precisions: tuple[str, ...] = ("fp32",),
    batch_sizes: tuple[int, ...] = (1,),
    paths: tuple[str, ...] = ("eager",),
    device: str = "cpu",
) -> Block:
    return Block(models=models, modes=modes, precisions=precisions, batch_sizes=batch_sizes, paths=paths, device=device)


def keys(*blocks: Block, overrides: Axes | None = None) -> list[str]:
    return [case.key for case in expand(preset(*blocks), overrides)]


def load(tmp_path: Path, text: str) -> Preset:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    return load_preset(str(file))


def test_blocks_and_axes_in_the_order_written_with_paths_innermost() -> None:
    first = block(
        models=("resnet50", "resnet18"), precisions=("fp32", "bf16"), batch_sizes=(8, 1), paths=("compile", "eager")
    )
    assert keys(first, block(modes=("train",))) == [
        f"resnet{depth}-infer-{precision}-b{batch}-i224-{path}-cpu"
        for depth in (50, 18)
        for precision in ("fp32", "bf16")
        for batch in (8, 1)
        for path in ("eager", "compile")  # the baseline leads, whatever was written
    ] + ["resnet18-train-fp32-b1-i224-eager-cpu"]
    assert [key.split("-")[1] for key in keys(block(modes=("train", "infer")))] == ["train", "infer"]


def test_the_first_of_duplicates_stays() -> None:
    cells = keys(block(batch_sizes=(2, 1, 2)), block(batch_sizes=(1, 4)))
    assert [key.split("-")[3] for key in cells] == ["b2", "b1", "b4"]


def test_all_leaves_out_only_paths_without_the_mode() -> None:
    train = [case.path for case in expand(preset(block(modes=("train",), paths=("all",))))]
    infer = [case.path for case in expand(preset(block(modes=("infer",), paths=("all",))))]
    assert train == [path.name for path in PATHS if "train" in path.modes]
    assert "folded" not in train
    assert infer == [path.name for path in PATHS if "infer" in path.modes]


def test_a_path_named_by_a_person_is_a_case_in_every_mode() -> None:
    cases = expand(preset(block(modes=("train", "infer"), paths=("all",))), Axes(paths=("folded",)))
    assert [(case.mode, case.path) for case in cases] == [("train", "folded"), ("infer", "folded")]


def test_capable_leaves_out_what_the_device_cannot_do() -> None:
    cpu = expand(preset(block(modes=("infer", "train"), paths=("capable",))))
    assert {"compile", "compile-max-autotune", "folded"} < {case.path for case in cpu if case.mode == "infer"}
    assert [case.path for case in cpu if case.mode == "train"] == ["eager", "channels_last", "compile"]
    assert not {"cuda-graph", "compile-reduce-overhead", "triton"} & {case.path for case in cpu}
    cuda = block(modes=("infer", "train"), paths=("capable",), device="cuda")
    assert keys(cuda) == keys(block(modes=("infer", "train"), paths=("all",), device="cuda"))


def test_minus_takes_a_path_out_wherever_it_stands() -> None:
    assert [case.path for case in expand(preset(block(paths=("-compile", "compile", "eager"))))] == ["eager"]
    everything = {path.name for path in PATHS if "infer" in path.modes}
    assert {case.path for case in expand(preset(block(paths=("all", "-eager"))))} == everything - {"eager"}
    with pytest.raises(ValueError, match="no case is left"):
        expand(preset(block(paths=("eager", "-eager"))))


def test_overrides_replace_an_axis_of_every_block() -> None:
    blocks = (
        block(models=("resnet18", "resnet34"), batch_sizes=(1, 2)),
        block(precisions=("bf16",), paths=("compile",)),
    )
    overrides = Axes(
        models=("resnet152",), modes=("train",), batch_sizes=(4,), paths=("eager",), image_size=64, device="cuda"
    )
    assert keys(*blocks, overrides=overrides) == [
        "resnet152-train-fp32-b4-i64-eager-cuda",
        "resnet152-train-bf16-b4-i64-eager-cuda",
    ]
    precisions = keys(*blocks, overrides=Axes(precisions=("tf32",)))
    assert precisions == [f"resnet{d}-infer-tf32-b{b}-i224-eager-cpu" for d in (18, 34) for b in (1, 2)] + [
        "resnet18-infer-tf32-b1-i224-compile-cpu"
    ]
    assert keys(*blocks, overrides=Axes()) == keys(*blocks)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (Axes(models=("resnet20",)), f"models: 'resnet20' is not allowed; allowed: {ALL}"),
        (Axes(modes=("eval",)), "modes: 'eval' is not allowed; allowed: train, infer"),
        (Axes(precisions=("fp32", "fp8")), "precisions: 'fp8' is not allowed; allowed: fp32, tf32, bf16, fp16"),
        (Axes(batch_sizes=(0, -4)), "batch_sizes: 0, -4 is not allowed; allowed: whole numbers from 1"),
        (Axes(batch_sizes=()), "batch_sizes: an empty list is not allowed; allowed: whole numbers from 1"),
        (Axes(image_size=0), "image_size: 0 is not allowed; allowed: a whole number from 1"),
        (Axes(image_size=31), "image_size: 31 px is too small: resnet18 needs images from 32 px"),
        (Axes(paths=("fast",)), "paths: 'fast' is not allowed; allowed: all, capable, eager, channels_last, "),
        (Axes(paths=("-all",)), "paths: '-all' is not allowed"),
        (Axes(device="tpu"), "device: 'tpu' is not allowed; allowed: cpu, cuda"),
    ],
)
def test_an_override_that_is_not_allowed_lists_what_is(overrides: Axes, message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 the whole message is compared
        expand(preset(block()), overrides)
    assert str(error.value).startswith(message)


def test_the_bounds_themselves_are_allowed() -> None:
    assert keys(block(), overrides=Axes(batch_sizes=(1,), image_size=32)) == ["resnet18-infer-fp32-b1-i32-eager-cpu"]


def test_one_search_for_the_largest_batch_for_each_way_of_running() -> None:
    cases = expand(preset(block(modes=("infer", "train"), batch_sizes=(8, 1), paths=("eager", "compile"))))
    searches = max_batch_cases(cases)
    assert [case.key for case in searches] == [
        f"resnet18-{mode}-fp32-bmax-i224-{path}-cpu" for mode in ("infer", "train") for path in ("eager", "compile")
    ]
    assert {(case.kind, case.batch_size) for case in searches} == {("max-batch", 1)}
    assert max_batch_cases((*cases, *searches)) == searches


def test_a_preset_of_ones_own(tmp_path: Path) -> None:
    mine = load(tmp_path, GOOD)
    assert (mine.name, mine.summary) == ("mine", "a test")
    assert mine.settings == Settings(confidence=0.1, seed=3)
    assert mine.blocks[1] == block(models=("resnet50",), device="cuda")
    assert mine.blocks[0] == block(batch_sizes=(1, 2), paths=("all",))
    assert load(tmp_path, GOOD.replace("\n", "\r\n")) == mine


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("seed = 3", "seed = ", 5, "seed: malformed TOML: "),
        ("    2,\n]", "    2 3\n]", 11, "batch_sizes: malformed TOML: "),
        ("    2,\n]", "    2,", 11, "batch_sizes: malformed TOML: "),
        ("seed = 3", "seed = 3\nseed = 4", 6, "seed: malformed TOML: "),
        ("[settings]", "[settings", 3, "malformed TOML: "),
        ('summary = "a test"', "", 1, "object missing required field `summary`"),
        ('"a test"', '""', 1, "summary: '' is not allowed; allowed: one line of text"),
        ('"a test"', '"a test"\nauthor = "me"', 2, "author: unknown key; allowed: summary, budget_s, settings, sweep"),
        ("seed = 3", "sead = 3", 5, "settings.sead: unknown key; allowed: confidence, warmup_budget_s, "),
        ("seed = 3", "models = 3", 5, "settings.models: unknown key; allowed: confidence, "),
        ("seed = 3", "seed = 0.5", 5, "settings.seed: expected `int`, got `float`; allowed: a whole number from 0"),
        ("seed = 3", "seed = -1", 5, "settings.seed: -1 is not allowed; allowed: a whole number from 0"),
        ("seed = 3", "timeout_s = inf", 5, "settings.timeout_s: inf is not allowed; allowed: a number of seconds"),
        ("seed = 3", "timeout_s = nan", 5, "settings.timeout_s: nan is not allowed"),
        ("0.1", "1", 4, "settings.confidence: 1 is not allowed; allowed: a number between 0 and 1"),
        (FIFTY, f"{FIFTY}\ndepth = 3", 19, "sweep.depth: unknown key; allowed: models, modes, precisions, "),
        (FIFTY, "[50]", 18, f"sweep.models: expected `str`, got `int`; allowed: {ALL}"),
        (FIFTY, "50", 18, f"sweep.models: expected `array`, got `int`; allowed: {ALL}"),
        (FIFTY, '["resnet51"]', 18, f"sweep.models: 'resnet51' is not allowed; allowed: {ALL}"),
        (FIFTY, "[]", 18, f"sweep.models: an empty list is not allowed; allowed: {ALL}"),
        (f"models = {FIFTY}\n", "", 17, "sweep: object missing required field `models`"),
        ("    2,\n", "    0,\n", 11, "sweep.batch_sizes: 0 is not allowed; allowed: whole numbers from 1"),
        ('["eager"]', '["fast"]', 22, "sweep.paths: 'fast' is not allowed; allowed: all, capable, eager, "),
        ('"cuda"', '"cuda"\nimage_size = true', 24, "sweep.image_size: expected `int`, got `bool`; allowed: a whole "),
        (
            '"cuda"',
            '"cuda"\nimage_size = 16',
            24,
            "sweep.image_size: 16 px is too small: resnet50 needs images from 32 px",
        ),
    ],
)
def test_an_error_in_a_preset_names_file_line_and_key(
    tmp_path: Path, old: str, new: str, line: int, message: str
) -> None:
    assert old in GOOD
    with pytest.raises(ValueError) as error:  # noqa: PT011 the whole message is compared
        load(tmp_path, GOOD.replace(old, new, 1))
    assert str(error.value).startswith(f"{tmp_path / 'mine.toml'}, line {line}: {message}")


def test_an_error_is_found_in_inline_tables_and_dotted_keys_too(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"line 3: settings\.seed: -1 is not allowed"):
        load(tmp_path, 'summary = "a test"\n# [settings] seed = 1\nsettings = { seed = -1 }\n' + BLOCK)
    with pytest.raises(ValueError, match=r"line 2: settings\.seed: -1 is not allowed"):
        load(tmp_path, 'summary = "a test"\nsettings.seed = -1\n' + BLOCK)
    with pytest.raises(ValueError, match=r"line 2: sweep: an empty list is not allowed"):
        load(tmp_path, 'summary = "a test"\nsweep = []\nsettings.seed = -1\n')
    with pytest.raises(ValueError, match=r"line 1: object missing required field `summary`"):
        load(tmp_path, "")


def test_a_preset_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown preset 'qick': choose from cpu, cpu-quick, full, h200, .*\.toml"):
        load_preset("qick")
    with pytest.raises(ValueError, match=r"cannot read the preset .*none\.toml: No such file"):
        load_preset(str(tmp_path / "none.toml"))
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(ValueError, match="cannot read the preset"):
        load_preset(str(tmp_path / "folder.toml"))
    (tmp_path / "latin.toml").write_bytes('summary = "é"'.encode("latin-1"))
    with pytest.raises(ValueError, match="not UTF-8"):
        load_preset(str(tmp_path / "latin.toml"))


def test_the_presets_that_come_with_resbench() -> None:
    assert {"cpu", "cpu-quick", "full", "h200", "quick"} <= set(preset_names())
    for name in preset_names():
        ours = load_preset(name)
        assert (ours.name, len({case.device for case in expand(ours)})) == (name, 1)
    for name, device in {"cpu-quick": "cpu", "cpu": "cpu", "quick": "cuda", "h200": "cuda", "full": "cuda"}.items():
        assert {case.device for case in expand(load_preset(name))} == {device}


@pytest.mark.parametrize("name", ["quick", "h200", "full"])
def test_presets_for_a_gpu_sample_for_as_long_as_its_energy_counter_needs(name: str) -> None:
    settings = load_preset(name).settings
    assert ENERGY_WINDOW_S < settings.sample_minimum_s <= settings.sample_budget_s


def test_quick_has_cases_for_a_gpu_without_bf16() -> None:
    cases = expand(load_preset("quick"))
    assert {(case.path, case.mode) for case in cases if case.precision == "fp16"} >= {
        ("eager", "train"), ("eager", "infer"), ("cuda-graph", "train"), ("folded", "infer")
    }  # fmt: skip
    assert cases[0].precision == "bf16"


def test_cpu_presets_hold_every_capable_path() -> None:
    on_cpu = [path for path in PATHS if not {"cuda", "cuda for timing"} & set(path.needs)]
    capable = {(path.name, mode) for path in on_cpu for mode in path.cpu_modes or path.modes}
    quick = expand(load_preset("cpu-quick"))
    assert {(case.path, case.mode) for case in quick} == capable
    assert {(case.model, case.precision, case.batch_size) for case in quick} == {
        ("resnet18", precision, 2) for precision in ("fp32", "bf16")
    }
    large = expand(load_preset("cpu"))
    assert {(case.model, case.precision, case.batch_size) for case in large} == {
        (model, precision, batch)
        for model in ("resnet18", "resnet50")
        for precision in ("fp32", "bf16")
        for batch in (1, 8)
    }
    assert len(large) == 8 * len(capable)


def test_h200_begins_with_resnet50_by_every_path() -> None:
    cases = expand(load_preset("h200"))
    cells = [(path.name, mode) for mode in ("train", "infer") for path in PATHS if mode in path.modes]
    assert [(case.path, case.mode) for case in cases[: len(cells)]] == cells
    assert {(c.model, c.precision, c.batch_size) for c in cases[: len(cells)]} == {("resnet50", "bf16", 256)}
    later = cases[len(cells) :]
    assert {case.model for case in later} == {"resnet18", "resnet50", "resnet101", "resnet152"}
    assert {case.batch_size for case in later} == {1, 32, 256, 512}
    assert {case.precision for case in later} == {"bf16", "fp32", "tf32", "fp16"}


def test_full_holds_every_model_and_path() -> None:
    cases = expand(load_preset("full"))
    assert {case.model for case in cases} == set(NETWORKS)
    assert {case.path for case in cases} == {path.name for path in PATHS}
    assert {case.precision for case in cases} == {"fp32", "tf32", "bf16", "fp16"}
    assert {1, 512} <= {case.batch_size for case in cases}
    assert len(cases) == 5 * 4 * 10 * sum(len(path.modes) for path in PATHS)


def test_every_key_of_a_preset_has_a_rule_and_every_override_is_an_axis() -> None:
    assert {"summary", "budget_s", "sweep", *_KEYS["settings"], *_KEYS["sweep"]} == set(RULES)
    assert {axis.name for axis in fields(Axes)} == set(Block.__struct_fields__)
