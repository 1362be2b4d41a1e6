"""Links: bandwidth, round trip, traces, and where one plan overtakes another."""
