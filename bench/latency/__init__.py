"""Parts of `bench.run_latency`."""
