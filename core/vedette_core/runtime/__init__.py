"""The only shared I/O: MQTT session, storage, identity on disk, configuration, logging, metrics."""
