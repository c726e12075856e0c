"""Networks, optimisers, update encoding and scoring: pure numpy, no clock, no I/O, no global randomness."""
