"""What is said between the parts of Vedette: topics, envelopes and message bodies. No I/O, nothing of ours below."""
