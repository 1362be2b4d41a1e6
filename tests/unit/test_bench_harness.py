"""The harness of benches: tables, turns, records, and a command that does it all."""

import argparse
import json
from pathlib import Path

import pytest

from bench.harness import Bench, Result, Target, in_turn, listed, record, spread, table
from common.errors import SplitpointError
from common.progress import Stages


def test_a_table_leaves_empty_what_a_row_lacks() -> None:
    rows: list[Result] = [{"name": "a", "ms": 1.25, "kind": "split"}, {"name": "b", "ms": None}]

    lines = list(table(rows, {"name": "{name}", "ms": "{ms:.1f}", "kind:": "{kind}"}))

    assert lines == ["| name | ms | kind |", "|---|--:|---|", "| a | 1.2 | split |", "| b |  |  |"]


def test_a_cell_may_be_a_function_of_its_row() -> None:
    *_, line = table([{"ms": 2.0}], {"s": lambda row: f"{row['ms'] / 1e3:g}"})

    assert line == "| 0.002 |"


def test_all_take_turns_in_another_order_each_round() -> None:
    turns = list(in_turn(8, rounds=3))
    orders = [tuple(thing for number, thing in turns if number == k) for k in range(3)]

    assert all(sorted(order) == list(range(8)) for order in orders)
    assert len(set(orders)) == 3
    assert turns == list(in_turn(8, rounds=3))


@pytest.mark.parametrize(
    ("count", "expected"), [(2, [0, 5]), (3, [0, 3, 6]), (20, list(range(10)))]
)
def test_some_values_are_spread_evenly(count: int, expected: list[int]) -> None:
    assert spread(range(10), count) == expected


def test_a_list_of_values_is_given_with_commas() -> None:
    assert listed(float)("1,2.5") == (1.0, 2.5)
    assert listed(str)("") == ()


def test_a_target_says_whether_it_is_met() -> None:
    assert Target("at most 2 x", "1.5 x", "at 3 Mbit/s", True).line == (
        "- met: at most 2 x: 1.5 x (at 3 Mbit/s)"
    )


def a_bench(value: int | SplitpointError) -> Bench:
    def measure(arguments: argparse.Namespace, _stages: Stages) -> Result:
        if isinstance(value, SplitpointError):
            raise value
        return record(value=value * arguments.times)

    def options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--times", type=int, default=1)

    return Bench(
        "A bench.", "a_bench", options, measure, lambda result: [f"It is {result['value']}."]
    )


def test_a_bench_measures_writes_and_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new" / "a.json"

    a_bench(21).main(["--times", "2", "--json", str(path)])

    written = json.loads(path.read_text())
    assert written["value"] == 42
    assert {"machine", "software_version"} <= written.keys()
    assert "It is 42." in capsys.readouterr().out


def test_what_cannot_be_measured_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="error: no root"):
        a_bench(SplitpointError("no root")).main(["--json", str(tmp_path / "a.json")])
    assert not list(tmp_path.iterdir())
