"""Define the colours and dashes of a report as CSS variables, for light and for dark pages."""

from __future__ import annotations

from html import escape

# The runs' colours were searched for: contrast 3.2 or more to the paper, and any two at least 20
# apart in CIELAB (Delta E 1976), the first ones the farthest, for readers who see all colours and
# for those who see no red, no green or no blue (Machado et al. 2009, severity 1).
THEME = {
    "ink": ("#1f2328", "#e6e8eb"),
    "quiet": ("#59626d", "#a4adb8"),
    "rule": ("#dfe3e8", "#363c45"),
    "paper": ("#fffffe", "#16191d"),
    "run-0": ("#0f2faa", "#497cff"),
    "run-1": ("#d37600", "#d9690f"),
    "run-2": ("#21a275", "#2fe39a"),
    "run-3": ("#a47dc3", "#d9b4f4"),
    "run-4": ("#941000", "#ffb80c"),
    "run-5": ("#601827", "#c4d8dd"),
    "run-6": ("#6f4177", "#8a7f67"),
    "run-7": ("#1463ff", "#ba46ac"),
}

COLOURS = sum(name.startswith("run-") for name in THEME)
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (1.5, 1.8), (7, 2, 1.5, 2))

MOST_RUNS = COLOURS * len(DASHES)
"""Most runs that differ in colour or dashes."""

VARIABLES = {light: f"var(--{name})" for name, (light, _) in THEME.items()}
"""The variable that stands for each drawn colour."""


def light_hex(run: int) -> str:
    """Return a run's colour on light paper, as matplotlib draws it."""
    return THEME[f"run-{run % COLOURS}"][0]


def dashes(run: int) -> tuple[float, ...]:
    """Return a run's dashes, (): none; neighbours and runs of one colour differ in them."""
    return DASHES[(run + run // COLOURS) % len(DASHES)]


def key(run: int, title: str) -> str:
    """Return a run's line as a legend shows it."""
    pattern = " ".join(f"{2 * length:g}" for length in dashes(run))
    return (
        f'<svg class="key" viewBox="0 0 30 10" role="img"><title>{escape(title)}</title>'
        f'<line x1="1" y1="5" x2="29" y2="5" stroke="{VARIABLES[light_hex(run)]}" stroke-width="3" '
        f'stroke-dasharray="{pattern or "none"}"/></svg>'
    )
