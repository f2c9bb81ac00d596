"""What the command list lists."""

import json

from bench.sweep.presets import preset_names
from tests.support.fake_runner import invoke


def test_lists() -> None:
    for what, key, expected in (
        ("paths", "path", {"eager", "compile", "folded"}),
        ("presets", "preset", set(preset_names())),
        ("models", "model", {"resnet18", "resnet152"}),
    ):
        assert {row[key] for row in json.loads(invoke("list", what, "--json").stdout)} >= expected
        printed = invoke("list", what).stdout
        assert all(name in printed for name in expected)
