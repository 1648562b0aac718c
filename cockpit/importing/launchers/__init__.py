"""Configurations that say how a training is started."""
