"""On the gateway: sources, features, detection, participation in rounds, releases."""
