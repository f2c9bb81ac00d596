"""A network that is no reference ResNet, of another shape in everything, goes through all that the suite does."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.support.planted_network import NAME, Planted
from tests.support.processes import PATIENCE_S

ROOT = Path(__file__).parents[1]
PRESET = f"""
summary = "a planted network"
[settings]
confidence = 0.99
warmup_budget_s = 0.1
sample_minimum_s = 0
sample_budget_s = 60
parity_steps = 2
[[sweep]]
models = ["{NAME}"]
modes = ["infer", "train"]
precisions = ["fp32"]
batch_sizes = [4]
paths = ["eager", "channels_last", "triton", "folded"]
device = "cpu"
"""
BATCH = 4
# Of one image: the stem and the first stage at 20x24 pixels, the others at 10x12 and 5x6, and the linear layer.
MULTIPLICATIONS = (
    20 * 24 * 9 * (1 * 8 + 8 * 8 + 8 * 8)
    + 10 * 12 * (9 * (8 * 12 + 3 * 12 * 12) + 8 * 12)
    + 5 * 6 * (9 * (12 * 16 + 16 * 16) + 12 * 16)
    + 16 * 10
)
FOREIGN = "path folded can only fold the reference ResNets, and planted is another network"

pytestmark = pytest.mark.timeout(2 * PATIENCE_S)


def resbench(here: Path, *arguments: str) -> str:
    """What the command prints with the network known to it."""
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", "from tests.support.known_network import resbench; resbench()", *arguments],
        cwd=here,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished run: its directory and what the terminal showed."""
    here = tmp_path_factory.mktemp("planted")
    (here / "planted.toml").write_text(PRESET)
    return here / "run", resbench(here, "run", "--preset", "planted.toml", "--out", "run")


@pytest.fixture(scope="module")
def table(run: tuple[Path, str]) -> pd.DataFrame:
    return pd.read_csv(run[0] / "results.csv").set_index("case")


def test_it_is_swept_checked_and_measured_at_its_own_size(table: pd.DataFrame) -> None:
    assert list(table.index) == [
        f"{NAME}-{mode}-fp32-b4-i20-{path}-cpu"
        for mode in ("infer", "train")
        for path in ("eager", "channels_last", "triton", "folded")
    ]
    assert list(table["status"]) == ["valid", "valid", "not-timed", "unsupported"] * 2
    assert table["reason"].iloc[3] == FOREIGN
    checked = table[table["status"] != "unsupported"]
    assert set(checked["parity"]) == {"pass"}
    assert (checked["parity_error"] <= checked["parity_tolerance"]).all()
    timed = table[table["status"] == "valid"]
    assert (timed["images_per_s"] > 0).all()
    assert list(timed["speedup_vs_eager"].dropna().index) == list(timed.index)


def test_its_memory_and_its_limits_are_those_of_its_shape(table: pd.DataFrame) -> None:
    network = Planted()
    parameters = sum(parameter.numel() for parameter in network.parameters())
    kept = sum(tensor.nbytes for tensor in network.state_dict().values())
    eager = {mode: table.loc[f"{NAME}-{mode}-fp32-b4-i20-eager-cpu"] for mode in ("infer", "train")}
    assert eager["infer"]["parameter_bytes"] == kept
    assert eager["train"]["gradient_bytes"] == eager["train"]["optimizer_bytes"] == 4 * parameters
    assert eager["infer"]["flops"] == 2 * MULTIPLICATIONS * BATCH
    # both gradients of every product but that of the images
    assert eager["train"]["flops"] == (6 * MULTIPLICATIONS - 2 * 20 * 24 * 9 * 8) * BATCH
    assert (table["floor_ms"] > 0).all()


def test_reports_show_it(run: tuple[Path, str]) -> None:
    directory, printed = run
    assert "planted · fp32 · batch 4 · 20x24 px · cpu" in printed
    report = (directory / "report.md").read_text()
    assert "**planted inference, batch 4**" in report
    assert FOREIGN in report
    assert {"throughput.png", "memory.png", "pareto.png"} <= {file.name for file in (directory / "plots").iterdir()}


def test_its_traffic_is_counted_layer_by_layer(tmp_path: Path) -> None:
    told: dict[str, Any] = json.loads(
        resbench(tmp_path, "traffic", NAME, "--batch", "4", "--precision", "fp32", "--device", "h200", "--layers",
                 "--paths", "eager,compile,cudnn-fused,triton", "--json")
    )  # fmt: skip
    rows = [row for row in told["rows"] if "operation" in row]
    assert {row["scheme"] for row in rows} == {"eager", "inductor", "cudnn-fused", "triton"}
    parts = list(dict.fromkeys(row["part"] for row in rows if row["scheme"] == "inductor"))
    assert parts == ["stem", "layer1.0", "layer2.0", "layer2.1", "layer3.0", "head"]
    assert not [row for row in rows if "pooling" in row["operation"] and row["part"] == "stem"]
    images, stem, filters = 4 * BATCH * 20 * 24, 4 * BATCH * 20 * 24 * 8, 4 * 9 * 8
    convolution, statistics, normalise = (
        row for row in rows if row["scheme"] == "inductor" and row["part"] == "stem" and row["direction"] == "forward"
    )
    assert [row["bytes"] for row in (convolution, statistics, normalise)] == [images + stem + filters, stem, 2 * stem]
    flops = {row["scheme"]: row["flops"] for row in told["rows"] if "operation" not in row and not row["part"]}
    assert len(flops) == 4
    assert set(flops.values()) == {(6 * MULTIPLICATIONS - 2 * 20 * 24 * 9 * 8) * BATCH}


def test_it_is_listed_and_its_images_may_not_be_smaller_than_it_reduces(tmp_path: Path) -> None:
    listed = json.loads(resbench(tmp_path, "list", "models", "--json"))
    assert listed[-1] == {
        "model": NAME,
        "block": "basic",
        "blocks": [1, 2, 1],
        "input": [1, 20, 24],
        "classes": 10,
        "weights": "none published",
    }
    with pytest.raises(AssertionError, match="image_size: 3 px is too small: planted needs images from 4 px"):
        resbench(tmp_path, "run", "--preset", "cpu", "--models", NAME, "--image-size", "3")
