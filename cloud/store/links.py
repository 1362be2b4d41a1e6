"""The links of all edges, as they estimated them for their newest frames."""

import sqlite3
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from common.tables.store_file import KEY, RECENT


class Spread(NamedTuple):
    """Spread of a quantity: 10th percentile, median, 90th percentile."""

    p10: float
    median: float
    p90: float


@dataclass(frozen=True)
class LinkSeen:
    """One edge's link, as the edge estimated it.

    Attributes:
        edge: Its name.
        n: Frames.
        uplink_bps: In bits per second.
        rtt_ms: Round trip of a small message.
        last_seen_s: When the newest frame was, in seconds since the epoch.
    """

    edge: str
    n: int
    uplink_bps: Spread
    rtt_ms: Spread
    last_seen_s: float


def links(database: sqlite3.Connection) -> list[LinkSeen]:
    """The links of all edges that have estimated theirs."""
    plans: defaultdict[str, list[tuple[float, tuple[str, ...]]]] = defaultdict(list)
    for *key, last_s in database.execute(
        f"SELECT {KEY}, MAX(at_s) FROM samples GROUP BY {KEY}"  # noqa: S608 - constants
    ):
        plans[key[0]].append((last_s, tuple(key)))
    found = []
    for edge, keys in sorted(plans.items()):
        seen = _newest_links(database, sorted(keys, reverse=True))
        if seen:
            at_s, *estimated = np.array(seen, np.float64).T
            bps, rtt_ms = (Spread(*np.percentile(e, (10, 50, 90)).tolist()) for e in estimated)
            found.append(LinkSeen(edge, len(seen), bps, rtt_ms, float(at_s[0])))
    return found


def _newest_links(
    database: sqlite3.Connection, keys: Sequence[tuple[float, tuple[str, ...]]]
) -> list[tuple[float, float, float]]:
    """Newest frames of one edge: (at_s, uplink_bps, rtt_ms) each, newest first.

    Args:
        database: The store.
        keys: By source and plan of the edge, when the newest frame was; the newest first.
    """
    query = (
        "SELECT at_s, uplink_bps, rtt_ms FROM samples WHERE edge = ? AND device = ? "  # noqa: S608
        "AND runtime = ? AND threads = ? AND plan = ? AND uplink_bps IS NOT NULL "
        f"AND rtt_ms IS NOT NULL ORDER BY at_s DESC LIMIT {RECENT}"
    )
    seen: list[tuple[float, float, float]] = []
    for last_s, key in keys:
        if len(seen) == RECENT and last_s < seen[-1][0]:
            break  # all the others are older
        seen = sorted(seen + database.execute(query, key).fetchall(), reverse=True)[:RECENT]
    return seen
