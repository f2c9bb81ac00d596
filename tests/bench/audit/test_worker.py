"""What the audit compiles, at which shapes, and which accesses have to be wide."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from bench.audit import worker as bench_audit
from bench.audit.worker import ODD_BLOCK_SHAPES, ODD_SHAPES, default_shapes, examine
from kernels.audit.audit import Subject, Use, Work, subjects
from kernels.audit.compilation import Compilation, of_call
from kernels.launch.runtime import Call

STAGE = (256, 64, 56, 56)
BLOCK = (256, 256, 56, 56)
STEM = (256, 64, 112, 112)


def test_default_shapes_are_those_of_the_networks() -> None:
    def shapes(*sizes: tuple[int, int]) -> set[tuple[int, int, int, int]]:
        return {(256, channels, size, size) for channels, size in sizes} | set(ODD_SHAPES)

    basic = ((64, 56), (128, 28), (256, 14), (512, 7))  # of resnet18 the inner and the last ones of each block
    inner = ((128, 56), (256, 28), (512, 14))  # of resnet50 besides, before the stride
    last = ((256, 56), (512, 28), (1024, 14), (2048, 7))
    found = {form: set(at) for form, at in default_shapes().items()}
    blocks = {
        "bottleneck": {(256, channels, size, size) for channels, size in last},
        "bottleneck+projection": {STAGE},
        "bottleneck+downsampling": {(256, channels, size, size) for channels, size in last[:-1]},
    }
    assert found == {form: at | set(ODD_BLOCK_SHAPES) for form, at in blocks.items()} | {
        "stem": shapes((64, 112)),
        "bn+relu": shapes(*basic, *inner),
        "bn+residual+relu": shapes(*basic, *last),
        "dual": shapes(*basic[1:], *last),
        "bn": shapes((64, 112), *basic, *inner, *last),
        "running statistics": shapes((64, 112), *basic, *inner, *last),
    }


def test_a_block_is_compiled_only_at_shapes_that_have_channels_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, object]] = []

    def noted(wanted: dict[str, object], *_: object, **__: object) -> list[object]:
        asked.append(wanted)
        return []

    monkeypatch.setattr(bench_audit, "audit", noted)
    few, many = (8, 2, 5, 5), (8, 4, 5, 5)
    examine(["sm_90"], ["bf16"], ["bn", "bottleneck", "running statistics"], [few, many])
    assert asked == [{"bn": [few, many], "bottleneck": [many], "running statistics": [few, many]}]


def test_specialisation_is_that_of_the_jit() -> None:
    names = ["x_ptr", "absent_ptr", "many", "one", "few", "far", "true", "share", "EPS", "BLOCK"]
    kernel = SimpleNamespace(arg_names=names, __module__="kernels.made_up", __name__="_made_up")
    arguments = (torch.empty(4, dtype=torch.bfloat16), None, 64, 1, 63, 2**31, True, 0.5)
    call = Call(kernel=kernel, grid=(1,), arguments=arguments, options={"EPS": 1e-5, "BLOCK": 16, "num_warps": 8})
    staged = replace(call, options=call.options | {"num_stages": 3})
    assert of_call(staged, "sm_90") == replace(of_call(call, "sm_90"), num_stages=3)
    assert of_call(call, "sm_90") == Compilation(
        kernel="kernels.made_up:_made_up",
        arch="sm_90",
        signature=(
            ("x_ptr", "*bf16"), ("absent_ptr", "constexpr"), ("many", "i32"), ("one", "constexpr"), ("few", "i32"),
            ("far", "i64"), ("true", "i1"), ("share", "fp32"), ("EPS", "constexpr"), ("BLOCK", "constexpr"),
        ),
        constants=(("absent_ptr", None), ("one", 1), ("EPS", 1e-5), ("BLOCK", 16)),
        divisible=("x_ptr", "many", "far"),
        num_warps=8,
        num_stages=None,
    )  # fmt: skip


def asked(form: str, *shapes: tuple[int, int, int, int], dtype: str = "bf16") -> dict[Subject, list[Use]]:
    return subjects(Work(form=form, shapes=shapes, arch="sm_90", dtype=dtype))


def test_equal_launches_are_compiled_once() -> None:
    alone, both = asked("bn", STAGE), asked("bn", STAGE, (512, *STAGE[1:]))
    assert alone.keys() <= both.keys()
    statistics = [(subject, uses) for subject, uses in both.items() if subject.kernel == "_partial_statistics"]
    assert [subject.layout for subject, _ in statistics] == ["channels_last", "NCHW, 16"]
    assert [[(use.mode, use.shape[0]) for use in uses] for _, uses in statistics] == [
        [("training", 256), ("training", 512)]
    ] * 2


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_a_block_is_compiled_in_one_layout_and_fp32_also_in_tf32(dtype: str) -> None:
    found = asked("bottleneck", (256, 256, 56, 56), dtype=dtype)
    assert {(one.layout, one.dtype) for one in found} == {("channels_last", dtype)}
    assert all(len(uses) == 1 for one, uses in found.items() if one.kernel in ("_conv_statistics", "_gram"))
    of_products = {one.kernel: set[object]() for one in found if "PRECISION" in dict(one.compilation.constants)}
    for one in found:
        if one.kernel in of_products:
            of_products[one.kernel].add(dict(one.compilation.constants)["PRECISION"])
    rows = {"_conv_statistics", "_gram", "_block_end", "_filter_gradient", "_inner_gradient", "_input_gradient"}
    assert of_products.keys() == rows | {"_varied", "_inner_filters"}
    assert all(of_products[kernel] == ({"ieee"} if dtype == "bf16" else {"ieee", "tf32"}) for kernel in rows)
    assert torch.get_float32_matmul_precision() == "highest", "put back"


def test_a_block_in_evaluation_has_no_backward_pass() -> None:
    found = asked("bottleneck+projection", STAGE)
    evaluated = {one.kernel for one, uses in found.items() if any(use.mode == "evaluation" for use in uses)}
    trained = {one.kernel for one, uses in found.items() if any(use.mode == "training" for use in uses)}
    assert evaluated == {"_block_end"}
    assert {"_block_end", "_conv_statistics", "_gram", "_inner_gradient", "_input_gradient", "_reduce"} <= trained


@pytest.mark.parametrize(("form", "shape", "dtype", "layout", "kernel", "activations", "wide"), [
    ("bottleneck", BLOCK, "bf16", "channels_last", "_conv_statistics", ("out_ptr", "x_ptr"), True),
    ("bottleneck", BLOCK, "fp32", "channels_last", "_input_gradient", ("dx_ptr", "dy_ptr", "skip_ptr"), True),
    ("bottleneck", BLOCK, "bf16", "channels_last", "_inner_gradient", ("dx_ptr", "dy_ptr", "x_ptr"), True),
    ("bottleneck", BLOCK, "bf16", "channels_last", "_varied", (), False),
    ("bottleneck", BLOCK, "bf16", "channels_last", "_parameter_gradients", (), False),
    ("bottleneck", (256, 60, 7, 7), "fp32", "channels_last", "_conv_statistics", ("out_ptr", "x_ptr"), False),
    ("bn", STAGE, "bf16", "channels_last", "_apply", ("y_ptr", "x_ptr"), True),
    ("dual", STAGE, "bf16", "NCHW, 16", "_gradient", ("dx_ptr", "dz_ptr", "dy_ptr", "x_ptr", "z_ptr"), True),
    ("dual", (256, 512, 7, 7), "bf16", "NCHW", "_gradient", ("dx_ptr", "dz_ptr", "dy_ptr", "x_ptr", "z_ptr"), False),
    ("bn", (256, 63, 7, 7), "bf16", "channels_last", "_partial_statistics", ("x_ptr",), False),
    ("bn", (256, 4, 7, 7), "fp32", "channels_last", "_partial_statistics", ("x_ptr",), True),
    ("bn", (256, 4, 7, 7), "bf16", "channels_last", "_partial_statistics", ("x_ptr",), False),
    ("stem", STEM, "bf16", "channels_last", "_pool", ("y_ptr", "x_ptr"), True),
    ("stem", STEM, "bf16", "channels_last", "_gradient", ("dx_ptr", "x_ptr"), True),
    ("stem", STEM, "bf16", "NCHW, 16", "_partial_statistics", ("x_ptr",), True),
    ("stem", STEM, "bf16", "NCHW, 16", "_pool", ("y_ptr", "x_ptr"), False),
    ("stem", STEM, "bf16", "NCHW, 16", "_gradient", ("dx_ptr", "x_ptr"), False),
    ("running statistics", STAGE, "bf16", "", "_update_running", (), False),
])  # fmt: skip
def test_which_accesses_have_to_be_wide(
    form: str, shape: tuple[int, int, int, int], dtype: str, layout: str, kernel: str, activations: tuple[str, ...],
    wide: bool,
) -> None:  # fmt: skip
    found = [one for one in asked(form, shape, dtype=dtype) if (one.kernel, one.layout) == (kernel, layout)]
    assert found
    assert {(one.activations, one.wide) for one in found} == {(activations, activations if wide else ())}


def test_a_product_is_wide_where_all_its_channels_allow_it() -> None:
    """Of 48 channels outside, which the compiler knows to be a multiple of 16, 12 are inside, and 48 behind those."""
    found = {one.kernel: one.wide for one in asked("bottleneck", (256, 48, 7, 7))}
    assert found["_conv_statistics"] == ()
    assert {one.wide for one in asked("bottleneck", (256, 64, 7, 7)) if one.kernel == "_conv_statistics"} == {
        ("out_ptr", "x_ptr")
    }
