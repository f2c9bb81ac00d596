"""What people import in their own code: by its short name, and nothing before it is asked for."""

import subprocess
import sys
from importlib import import_module

import pytest

from tests.support.processes import PATIENCE_S
from tests.support.repository import ROOT


@pytest.mark.parametrize("package", ["resnet", "kernels"])
def test_every_public_name_is_there_and_documented(package: str) -> None:
    public = import_module(package)
    for name in public.__all__:
        assert getattr(public, name).__doc__, name
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nothing'"):
        _ = public.nothing


def test_the_tables_of_paths_and_models_are_read_without_torch() -> None:
    code = "import sys, resnet, resnet.paths, resnet.models.table; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, timeout=PATIENCE_S)  # noqa: S603
    assert done.returncode == 0
