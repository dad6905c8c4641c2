"""Numbers for people."""


def size(size_bytes: int) -> str:
    """`412 B`, `1.3 GB`: decimal units, as disks are sold and networks are measured."""
    value = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 99.95 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
