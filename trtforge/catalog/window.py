"""When builds may start, and which models it is the turn of. Times are aware; the zone is local."""

from datetime import datetime, time, timedelta
from zoneinfo import ZoneInfo

from trtforge.catalog.model import DAYS, BuildWindow, CatalogModel

_DAY = timedelta(days=1)


def is_open(window: BuildWindow | None, at: datetime) -> bool:
    """Whether builds may start."""
    if window is None:
        return True
    local = at.astimezone(ZoneInfo(window.timezone))
    # One that opened yesterday may last into today.
    return any(_opened(window, local, days_before) for days_before in (0, 1))


def next_opening(window: BuildWindow | None, at: datetime) -> datetime:
    """When builds may start next: `at` itself while it is open."""
    if window is None or is_open(window, at):
        return at
    zone = ZoneInfo(window.timezone)
    local = at.astimezone(zone)
    for days in range(8):
        date = local.date() + timedelta(days=days)
        opens = datetime.combine(date, _time(window.opens), zone)
        if DAYS[date.weekday()] in window.days and opens.astimezone(at.tzinfo) > at:
            return opens
    raise AssertionError("a window opens on one day of the week at least")


def turn_of(model: CatalogModel, built_at: datetime | None, at: datetime, zone: ZoneInfo) -> str:
    """Why it is not the model's turn now; empty when it is.

    Args:
        built_at: When the cell's engine was last published; None: never.
    """
    local = at.astimezone(zone)
    if model.every and built_at and at - built_at < model.every:
        again = (built_at + model.every).astimezone(zone)
        return f"not before {again:%Y-%m-%d %H:%M} ({_zone_name(zone)}): every {_text(model.every)}"
    if DAYS[local.weekday()] not in model.days:
        return f"not on {DAYS[local.weekday()]}, only on {', '.join(model.days)}"
    return ""


def start_of_day(at: datetime, zone: ZoneInfo) -> datetime:
    """Midnight before `at`, where `zone` is."""
    return datetime.combine(at.astimezone(zone).date(), time(), zone)


def _opened(window: BuildWindow, local: datetime, days_before: int) -> bool:
    date = local.date() - timedelta(days=days_before)
    if DAYS[date.weekday()] not in window.days:
        return False
    zone = ZoneInfo(window.timezone)
    closing_date = date if window.closes > window.opens else date + _DAY
    opens = datetime.combine(date, _time(window.opens), zone)
    closes = datetime.combine(closing_date, _time(window.closes), zone)
    # Compared as moments: two times of one zone are otherwise compared by the clock on the wall.
    return opens.timestamp() <= local.timestamp() < closes.timestamp()


def _time(minutes: int) -> time:
    return time(minutes // 60, minutes % 60)


def _zone_name(zone: ZoneInfo) -> str:
    return zone.key


def _text(length: timedelta) -> str:
    hours = round(length.total_seconds() / 3600)
    return f"{hours // 24} days" if hours % 24 == 0 else f"{hours} hours"
