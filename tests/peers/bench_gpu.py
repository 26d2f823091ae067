"""`make bench-gpu`: launch/bench/gpu/bench_gpu.py with the public recipe beside ours, as bench.py does it on a CPU."""

from __future__ import annotations

from launch.bench.gpu.bench_gpu import main
from tests.peers.bench import public_recipe

if __name__ == "__main__":
    raise SystemExit(main(peers={"public recipe": public_recipe}))
