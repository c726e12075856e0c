"""Rollouts of whole fleets on a simulated clock, network and disk, with everything that can go wrong."""
