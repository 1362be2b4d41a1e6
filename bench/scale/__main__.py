"""More edges, larger networks, bit widths of many layers, strangers.

python -m bench.scale edges --bundle DIR --images DIR [--seconds 4] [--streams 1,2,4,8]
python -m bench.scale networks
python -m bench.scale allocation [--networks 30]
python -m bench.scale strangers --bundle DIR --images DIR [--frames 100] [--turns 3]
"""

from bench.harness import main_of
from bench.scale import allocation, larger_networks, many_edges, strangers

if __name__ == "__main__":
    main_of(
        {
            "edges": many_edges.BENCH,
            "allocation": allocation.BENCH,
            "networks": larger_networks.BENCH,
            "strangers": strangers.BENCH,
        }
    )
