"""The page's sections on what the search found out beside its candidates: losses, rungs, settings, stages."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

import plotly.graph_objects as go

from autocompress.report import audits, importances, losses
from autocompress.report.html import scroll, section
from autocompress.report.stages import stages_info
from autocompress.report.view import RunView


def figures(view: RunView) -> dict[str, go.Figure]:
    """Figures by the id of their place; none of what is not known."""
    drawn = {}
    if view.losses:
        drawn["losses"] = losses.draw_losses(losses.losses_info(view))
    if view.found.audits:
        drawn["audits"] = audits.draw_audits(audits.audits_info(view))
    settings = importances.importances_info(view.found)
    if settings.outcomes:
        drawn["importances"] = importances.draw_importances(settings)
    return drawn


def loss_section(view: RunView) -> Iterator[str]:
    """What single choices lose, where that was measured."""
    if not view.losses:
        return
    info = losses.losses_info(view)
    more = f" {info.left_out} rows that lose less are not shown." if info.left_out else ""
    yield section(
        "What single choices lose",
        '<p class="note">How far the dense model\'s predictions move when one choice alone is made, as KL '
        "(dense ‖ changed) in nats, before any recovery. The search puts whole candidates together from these. A share "
        "is what is kept."
        f'{more}</p><div class="scroll"><div id="losses" class="figure" style="height:{losses.height(info)}px;'
        f'min-width:{180 + 66 * len(info.columns)}px"></div></div>',
        "Filled cells were measured on training samples; hollow ones are estimated from what the same choice loses "
        "elsewhere. Empty: there is no such choice.",
    )


def outcome_sections(view: RunView) -> Iterator[str]:
    """How rungs foretell each other, and which settings matter, where that is known."""
    if view.found.audits:
        yield section(
            "Can few steps foretell many?",
            f'<p class="note">Each dot is one structure on two neighbouring rungs. {audits.sentence(view)}</p>'
            '<div id="audits" class="figure"></div>',
            f"{audits.LEGEND} Qualities are those that the search chooses by.",
        )
    if any(one.count for one in view.found.importances):
        yield _importances_section(view)


def _importances_section(view: RunView) -> str:
    info = importances.importances_info(view.found)
    plot = ""
    if info.outcomes:
        plot = f'<div id="importances" class="figure" style="height:{importances.height(info)}px"></div>'
    under = (
        "Variance of the outcome that a setting explains by itself, over all settings that could be searched (fANOVA); "
        "the rest is due to settings together. Pale bars are within what a setting without any effect reaches in 19 of "
        "20 cases (red stroke). "
    )
    recovered = any(one.of == "recovery" for one in view.found.importances)
    alike = "Qualities are compared within one structure only." if recovered else ""
    return section(
        "Which settings matter",
        f'<p class="note">{escape(" ".join(info.notes))}</p>{plot}',
        under + alike if info.outcomes else "",
    )


def stages_table(view: RunView) -> str:
    """What each stage took and gained, as a table; nothing in old runs."""
    heads = ("Stage", "Time", "Candidates", "Hypervolume before", "after", "gained")
    cells = [
        [escape(row.stage), row.time, row.candidates, row.before, row.after, row.gain]
        for row in stages_info(view.stages)
    ]
    if not cells:
        return ""
    part = '<p class="under">The table\'s hypervolumes are of the part that the search selects by.</p>'
    return scroll(heads, cells, (1, 2, 3, 4, 5)) + (part if view.divided and view.part == "confirm" else "")
