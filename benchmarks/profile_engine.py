"""Where an engine's time goes: cProfile over one replay.

python benchmarks/profile_engine.py [--engine clock] [--tokens 200] [--share 75] [--lines 30]
"""

import argparse
import cProfile
import pstats

from cases import SHARES, cases, run_engine

from moesim.simulator.runs import ENGINES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=200, help="length of the synthetic trace")
    parser.add_argument("--share", type=int, default=75, choices=SHARES, help="VRAM, in percent")
    parser.add_argument("--engine", default="clock", choices=ENGINES, help="which simulator")
    parser.add_argument("--lines", type=int, default=30, help="functions to show")
    parser.add_argument("--sort", default="tottime", choices=("tottime", "cumtime", "ncalls"))
    options = parser.parse_args()
    case = next(case for case in cases(options.tokens) if case.share == options.share)
    prepared = case.prepare()
    profile = cProfile.Profile()
    profile.runcall(run_engine, prepared, options.engine)
    pstats.Stats(profile).sort_stats(options.sort).print_stats(options.lines)


if __name__ == "__main__":
    main()
