"""The parts of benchmarks/peers.py; `inside/` holds what runs in the peers' own environments."""
