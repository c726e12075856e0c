"""Proof: the product's own detectors and their peers on public recordings, judged by labels they never saw."""
