"""A step as a rank writes it, by hand."""


def step(i, start, end, actions, collectives=(), loss=None, **more):
    """One line of a rank's file."""
    return {
        "step": i, "warmup": i == 0, "loss": loss, "start": start, "end": end,
        "actions": list(actions), "collectives": list(collectives),
    } | more  # fmt: skip
