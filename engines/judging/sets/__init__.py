"""Test rows that Cockpit ships: general questions, which show what a training made a model forget."""
