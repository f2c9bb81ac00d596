"""Which argument a load or store goes to, on PTX small enough to see it."""

import pytest

from kernels.audit.ptx import Access, accesses

HEADER = """
.visible .entry kernel(
	.param .u64 .ptr .global .align 1 kernel_param_0,
	.param .u64 .ptr .global .align 1 kernel_param_1,
	.param .u32 kernel_param_2
)
{
	.reg .b64 %rd<9>;
	ld.param.b64 	%rd1, [kernel_param_0];
	ld.param.b64 	%rd2, [kernel_param_1];  // a comment; with ld.global.b8 %r9, [%rd2];
	ld.param.b32 	%r1, [kernel_param_2];
	mul.wide.s32 	%rd3, %r1, 4;
"""
BODIES = {
    "widths": (
        """
	@%p1 ld.global.L1::evict_last.L2::cache_hint.v4.b32 { %r2, %r3, %r4, %r5 }, [ %rd1 + 0 ], %rd8;
	@!%p1 ld.global.nc.b16 %rs1, [ %rd1 + 2 ];
	st.global.v2.b32 [ %rd2 + 0 ], { %r2, %r3 };
	""",
        {(0, "load", 128), (0, "load", 16), (1, "store", 64)},
    ),
    "arithmetic": (
        """
	add.s64 	%rd4, %rd2, %rd3;
	mad.wide.u32 	%rd5, %r1, 4, %rd1;
	{ mov.b64 %rd6, %rd5; }
	ld.global.b32 %r2, [ %rd4 + 16 ];
	ld.global.b64 %rd7, [ %rd6 + 0 ];
	""",
        {(1, "load", 32), (0, "load", 64)},
    ),
    "around a loop": (
        """
	mov.b64 	%rd4, %rd3;
$L__BB0_1:                              // a label
	ld.global.v2.b64 { %rd5, %rd6 }, [ %rd4 + 0 ];
	mov.b64 	%rd4, %rd7;
	add.s64 	%rd7, %rd8, 128;
	mov.b64 	%rd8, %rd1;
	@%p1 bra 	$L__BB0_1;
	""",
        {(0, "load", 128)},
    ),
    "through shared memory": (
        """
	st.shared::cta.v2.b64 [ %r7 + 0 ], { %rd1, %rd3 };
	ld.shared.b64 %rd4, [ %r8 + 0 ];
	st.global.b8 [ %rd4 + 0 ], %rs1;
	""",
        {(0, "store", 8)},
    ),
    "two pointers in one address": (
        """
	sub.s64 	%rd4, %rd2, %rd1;
	add.s64 	%rd5, %rd4, %rd1;
	ld.global.b32 %r2, [ %rd5 + 0 ];
	""",
        {(0, "load", 32), (1, "load", 32)},
    ),
    "a loaded value is no address": (
        """
	ld.global.b64 %rd4, [ %rd1 + 0 ];
	add.s64 	%rd5, %rd2, %rd4;
	ld.global.v4.b32 { %r2, %r3, %r4, %r5 }, [ %rd5 + 0 ];
	""",
        {(0, "load", 64), (1, "load", 128)},
    ),
    "asynchronous and generic": (
        """
	cp.async.cg.shared.global [ %r7 + 0 ], [ %rd1 + 0 ], 0x10, %r8;
	cvta.to.global.u64 %rd4, %rd2;
	ld.f32 %f1, [%rd4];
	ld.local.b64 %rd5, [ %rd6 + 0 ];
	""",
        {(0, "load", 128), (1, "load", 32)},
    ),
}


@pytest.mark.parametrize("name", BODIES)
def test_accesses(name: str) -> None:
    body, expected = BODIES[name]
    assert {plain for access in accesses(f"{HEADER}{body}\n\tret;\n}}\n") for plain in pointers(access)} == expected


def pointers(access: Access) -> list[tuple[int, str, int]]:
    """The access for each pointer among its parameters; the third is a number."""
    kind = "store" if access.store else "load"
    return [(parameter, kind, access.bits) for parameter in access.parameters if parameter < 2]


def test_an_access_of_unknown_width_is_no_silence() -> None:
    with pytest.raises(AssertionError, match=r"ld\.global\.v4"):
        accesses("ld.global.v4 {%r1, %r2, %r3, %r4}, [ %rd1 + 0 ];")
