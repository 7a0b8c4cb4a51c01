"""Walks through Hexagon's assembly: how many packets run."""

from __future__ import annotations

import pytest

from pock_tvm.tuning.static.hexagon_walk import CALL_PACKETS, packets_run
from pock_tvm.tuning.static.loops import NoEstimateError

# Three outer rounds, whose inner loops run 5, 105 and 205 times by a counter that is kept on the stack; then a loop of
# ten rounds by two addresses.
LOOPS = {
    "entry": ["r2 = #0; r5 = add(r0,#40)", "loop1(##.LBB0_1,#3)"],
    ".LBB0_1": ["r3 = add(r2,#5); memw(r29+#4) = r2", "r4 = #0; loop0(.LBB0_2,r3)"],
    ".LBB0_2": ["r4 = add(r4,#1); v0 = vmem(r1++#1)", "r7:6 = memd(r1+#8); :endloop0"],
    "after 3": ["r2 = memw(r29+#4)", "r2 = add(r2,#100); :endloop1"],
    ".LBB0_3": ["r0 = add(r0,#4)", "p0 = cmp.eq(r0,r5); if (!p0.new) jump:t .LBB0_3"],
    "after 5": ["jumpr r31"],
}
COUNT = 2 + 3 * 4 + 2 * (5 + 105 + 205) + 10 * 2 + 1


def test_rounds_of_all_loops_count() -> None:
    assert packets_run(LOOPS) == COUNT


def test_rounds_that_are_not_alike_are_not_skipped() -> None:
    """A branch within the inner loop: its third and later rounds jump over a packet."""
    inner = ["p0 = cmp.gt(r4,#1); r4 = add(r4,#1)", "if (p0) jump:nt .LBB0_4"]
    blocks = LOOPS | {".LBB0_2": inner, "after 3": ["nop"], ".LBB0_4": ["nop; :endloop0"]}
    blocks |= {"after 4": LOOPS["after 3"]} | {label: LOOPS[label] for label in (".LBB0_3", "after 5")}
    ordered = ["entry", ".LBB0_1", ".LBB0_2", "after 3", ".LBB0_4", "after 4", ".LBB0_3", "after 5"]
    rounds = 5 + 105 + 205
    assert packets_run({label: blocks[label] for label in ordered}) == COUNT - 2 * rounds + 3 * rounds + 3 * 2


def test_calls_count_and_leave_registers_unknown() -> None:
    blocks = {"entry": ["r20 = #7; call __hexagon_divsi3", "loop0(.LBB0_1,r20)"], ".LBB0_1": ["nop; :endloop0"]}
    assert packets_run(blocks | {"after 2": ["jumpr r31"]}) == 2 + CALL_PACKETS + 7 + 1


@pytest.mark.parametrize("packet", ["p0 = cmp.eq(r7,#0)", "loop0(.LBB0_1,r7)"])
def test_what_depends_on_data_has_no_count(packet: str) -> None:
    last = "if (p0) jump:nt .LBB0_1" if "cmp" in packet else "nop; :endloop0"
    with pytest.raises(NoEstimateError, match="depends on data"):
        packets_run({"entry": ["r7 = memw(r0+#0)", packet], ".LBB0_1": ["nop", last], "after 2": ["jumpr r31"]})
