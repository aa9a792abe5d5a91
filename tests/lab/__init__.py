"""A small cluster of unlike hosts on one machine; README.md says how to bring one up."""

CONTROLLER = "ctl"
"""The machine beside the hosts, on every switch with no limit: where schedulers and launchers run.
"""
