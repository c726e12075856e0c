"""Secure aggregation: what participant, committee member and aggregator do, side by side; no socket, no clock.

Grouped, one-shot, double-masked, with an unmasking committee. Composed of published parts (Bonawitz et al. CCS 2017,
Bell et al. CCS 2020, Flamingo S&P 2023) and **unaudited**: see `docs/protocol.md` §5 and `docs/threat-model.md`.
"""
