"""How many steps a picture takes, for those who draw it and for those who only count."""

STRENGTH = 0.6
"""How much of an initial picture is drawn anew where nothing is said."""


def steps_drawn(num_inference_steps: int, strength: float | None) -> int:
    """Steps that are computed: all, or the last ones where a picture to start from keeps 1 - `strength`."""
    share = 1.0 if strength is None else strength
    # Products such as 0.29 x 100 come out a little below the whole number that they are.
    return max(1, int(num_inference_steps * share + 1e-9))
