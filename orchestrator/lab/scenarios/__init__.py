"""Scenarios: one VM, one fault, one policy, and what must come out of it; run through the real command."""
