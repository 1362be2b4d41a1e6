"""What a store knows of plans on edges of one kind, and of the links of all edges.

An edge that connects is told what plans took on others of its kind, so that its first choice is no
guess. Medians are of the newest samples only: a device that was replaced or throttled is soon seen
as it is now.
"""

import sqlite3
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from common.store_file import RECENT, of_one_kind
from common.tables import Place


@dataclass(frozen=True)
class Learned:
    """What frames of one plan took on edges of one kind, in medians.

    Attributes:
        plan: The plan's digest, in hex.
        n: Frames.
        edge_ms: From the decoded picture to the Frame; of edge-only, to the detections.
        cloud_ms: In the cloud, without waiting for a runtime; 0 for edge-only.
        uplink_bytes: Size of the Frame; 0 for edge-only.
    """

    plan: str
    n: int
    edge_ms: float
    cloud_ms: float
    uplink_bytes: int


class Spread(NamedTuple):
    """How a quantity is spread."""

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


def learned(database: sqlite3.Connection, place: Place) -> list[Learned]:
    """What plans took on edges of one kind."""
    kind = "device = ? AND runtime = ? AND threads = ?"
    plans = database.execute(
        f"SELECT DISTINCT plan FROM samples WHERE {kind} ORDER BY plan",  # noqa: S608 - a constant
        place,
    ).fetchall()
    # Boxes are decoded in the cloud unless the plan is edge-only, which has no decode_ms.
    query = (
        "SELECT IFNULL(preprocess_ms, 0) + IFNULL(head_ms, 0) + IFNULL(encode_ms, 0)"  # noqa: S608
        "     + IFNULL(other_ms, 0) + IIF(decode_ms IS NULL, IFNULL(postprocess_ms, 0), 0),"
        " IIF(decode_ms IS NULL, 0, decode_ms + IFNULL(tail_ms, 0) + IFNULL(postprocess_ms, 0)),"
        " uplink_bytes"
        f" FROM ({of_one_kind()})"
    )
    found = []
    for (plan,) in plans:
        samples = database.execute(query, (*place, plan, *place, plan)).fetchall()
        edge_ms, cloud_ms, uplink_bytes = np.median(np.array(samples, np.float64), axis=0).tolist()
        found.append(Learned(plan, len(samples), edge_ms, cloud_ms, round(uplink_bytes)))
    return found


def links(database: sqlite3.Connection) -> list[LinkSeen]:
    """The links of all edges that know theirs."""
    known = "uplink_bps IS NOT NULL AND rtt_ms IS NOT NULL"
    edges = database.execute(
        f"SELECT DISTINCT edge FROM samples WHERE {known} ORDER BY edge"  # noqa: S608 - a constant
    ).fetchall()
    query = (
        f"SELECT at_s, uplink_bps, rtt_ms FROM samples WHERE edge = ? AND {known} "  # noqa: S608
        f"ORDER BY at_s DESC LIMIT {RECENT}"
    )
    found = []
    for (edge,) in edges:
        samples = np.array(database.execute(query, (edge,)).fetchall(), np.float64)
        bps, rtt_ms = (
            Spread(*np.percentile(samples[:, column], (10, 50, 90)).tolist()) for column in (1, 2)
        )
        found.append(LinkSeen(edge, len(samples), bps, rtt_ms, float(samples[0, 0])))
    return found
