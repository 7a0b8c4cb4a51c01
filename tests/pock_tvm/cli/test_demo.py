"""The demo, as a newcomer runs it: it has to learn."""

from __future__ import annotations

import re

from pock_tvm.cli import demo


def test_every_scheme_personalises(capsys) -> None:
    demo.run()
    said = capsys.readouterr().out
    before = float(re.search(r"accuracy ([\d.]+) %", said)[1])
    rows = dict(re.findall(r"│ (head|sparse|everything|PyTorch, everything) +│ +([\d.]+) │", said))
    assert before < 30
    assert len(rows) == 4
    assert min(map(float, rows.values())) > 75, rows
