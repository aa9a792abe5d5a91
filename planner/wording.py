"""Numbers in sentences."""


def percent(share: float) -> str:
    """`3.1%`; what rounds to nothing is said to be little, not zero."""
    if 0 < share < 0.0005:
        return "under 0.1%"
    return f"{share:.1%}"


def gib(num_bytes: float) -> str:
    """In GiB, or MiB where it is less than a tenth of one."""
    value = num_bytes / 2**30
    return f"{value:.1f} GiB" if value >= 0.1 or value == 0 else f"{num_bytes / 2**20:.1f} MiB"


def rate(bytes_per_s: float) -> str:
    """`450 GB/s`."""
    if bytes_per_s < 1e9:
        return f"{bytes_per_s / 1e6:.3g} MB/s"
    return f"{bytes_per_s / 1e9:.4g} GB/s"
