"""The demo fleet: broker, aggregator and device nodes as real processes that replay recorded attacks."""
