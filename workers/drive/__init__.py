"""Driving one host through one rollout: one step at a time, each journaled before the next begins."""
