# SPDX-License-Identifier: Apache-2.0
"""The results of a run as tables for people. Pure."""

from collections.abc import Iterator, Sequence

from bench.figures import Figures, figures_of, ratio_of
from bench.report import figures_at, figures_reported, on_node
from bench.samples import Arm, Moment, Run, Sample

BOTH = "both"
LATENCIES = (
    (Arm.FLOOR, Moment.T1, "floor: pod posted -> checkpoint names it"),
    (Arm.ADMISSION, Moment.T1, "admission T1: posted -> first open"),
    (Arm.ADMISSION, Moment.T2, "admission T2: posted -> Ready seen"),
)
UNMOUNT = (
    (Arm.ADMISSION, Moment.REFUSED, "deleted -> first refused open"),
    (Arm.ADMISSION, Moment.GONE, "deleted -> DeviceMount gone"),
    (Arm.ADMISSION, Moment.FREE, "deleted -> device free"),
)
HOPS = (
    (Moment.POSTED, "the API server answered the POST"),
    (Moment.SHADOW_POD, "shadow pod seen"),
    (Moment.CHOSEN, "the kubelet chose its device"),
    (Moment.T1, "first open in the target"),
    (Moment.T2, "Ready seen"),
)


def tables(run: Run) -> str:
    """Return what `make bench` prints in the end."""
    head = f"{'ms':<42}{'node':<7}{'n':>4}{'p50':>9}{'p95':>9}{'p99':>9}{'max':>9}"
    parts = (
        (f"{head}   x floor p50  p95  p99", *_rows(run, LATENCIES)),
        _rows(run, UNMOUNT),
        ("hops of admission, p50 in ms: after the POST (since the hop before)", *_hops(run)),
        ("p50 in ms since the agent got Apply, since the operator saw the mount", *_reported(run)),
        _closing(run),
    )
    return "\n\n".join("\n".join(part) for part in parts)


def _rows(run: Run, of: Sequence[tuple[Arm, Moment, str]]) -> Iterator[str]:
    for arm, moment, what in of:
        for node, samples in ((BOTH, run.samples), *_by_node(run)):
            figures = figures_at(samples, arm, moment)
            base = figures_at(samples, Arm.FLOOR, Moment.T1)
            row = f"{what:<42}{node:<7}" + (_times(figures) if figures else "   0  no sample")
            with_ratio = moment in (Moment.T1, Moment.T2)
            yield row + (_ratio(figures, base) if figures and base and with_ratio else "")


def _times(figures: Figures) -> str:
    values = (figures.p50, figures.p95, figures.p99, figures.max)
    return f"{figures.n:>4}" + "".join(f"{value:>9.1f}" for value in values)


def _ratio(figures: Figures, base: Figures) -> str:
    ratio = ratio_of(figures, base)
    return f"{ratio.p50:>14.2f} {ratio.p95:>4.2f} {ratio.p99:>4.2f}"


def _by_node(run: Run) -> list[tuple[str, list[Sample]]]:
    return [(node, on_node(run.samples, node)) for node in run.nodes]


def _hops(run: Run) -> Iterator[str]:
    yield f"{'':<42}" + "".join(f"{node:>18}" for node in run.nodes)
    before: Moment | None = None
    for moment, what in HOPS:
        cells = (_hop(samples, before, moment) for _, samples in _by_node(run))
        yield f"{what:<42}" + "".join(f"{cell:>18}" for cell in cells)
        before = moment


def _hop(samples: Sequence[Sample], before: Moment | None, moment: Moment) -> str:
    taken = [s.ms for s in samples if s.arm is Arm.ADMISSION]
    reached = figures_of([ms[moment] for ms in taken])
    step = figures_of([ms[moment] - (ms[before] if before else 0.0) for ms in taken])
    return f"{reached.p50:.1f} ({step.p50:+.1f})" if reached and step else "-"


def _reported(run: Run) -> Iterator[str]:
    by_node = [figures_reported(samples, Arm.ADMISSION) for _, samples in _by_node(run)]
    both = figures_reported(run.samples, Arm.ADMISSION)
    for name in sorted(both, key=lambda name: (name.split()[0], both[name].p50)):
        cells = (f"{found[name].p50:.1f}" if name in found else "-" for found in by_node)
        yield f"{name:<42}" + "".join(f"{cell:>18}" for cell in cells)


def _closing(run: Run) -> Iterator[str]:
    for failure in run.failures:
        yield f"failed: {failure.arm.value} on {failure.node}: {failure.what}"
    yield (
        f"{run.rounds} rounds, {len(run.failures)} failed samples, "
        f"load average {min(run.loads):.1f} to {max(run.loads):.1f}"
    )
