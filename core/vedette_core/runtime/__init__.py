"""The only shared I/O: MQTT session, clock, storage, identity on disk, configuration, logging, metrics."""
