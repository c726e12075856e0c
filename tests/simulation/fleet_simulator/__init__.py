"""The fleet in one process: the real machines, intake and envelopes on a simulated clock, network and disk."""
