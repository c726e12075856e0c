"""At the edge's centre: rounds, aggregation, releases, fleet metrics."""
