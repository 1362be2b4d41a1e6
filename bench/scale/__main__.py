"""More edges, larger networks, strangers.

python -m bench.scale edges --bundle DIR --images DIR [--seconds 4] [--streams 1,2,4,8]
python -m bench.scale networks
python -m bench.scale strangers --bundle DIR --images DIR [--frames 100] [--turns 3]
"""

from bench.harness import main_of
from bench.scale import larger_networks, many_edges, strangers

if __name__ == "__main__":
    main_of(
        {
            "edges": many_edges.BENCH,
            "networks": larger_networks.BENCH,
            "strangers": strangers.BENCH,
        }
    )
