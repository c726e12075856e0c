"""Who may speak: the embedded broker, access rules, certificates, and configurations for other brokers."""
