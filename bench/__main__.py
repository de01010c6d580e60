# SPDX-License-Identifier: Apache-2.0
"""Runs the arms in rounds: each arm once on each node, in random order, so that what else the
machine does meets all of them alike.

The first round only warms connections and images up and does not count. Exit status 1 if an arm
has no sample on a node.
"""

import argparse
import json
import random
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import grpc

from bench.arms import MEASURE, Unexpected
from bench.cluster import Cluster, Place, cluster
from bench.machine import commit, load_average, machine
from bench.report import results
from bench.samples import Arm, Failure, Moment, Run, Sample
from bench.table import tables
from devicemount_testbed.api import ApiError, DeadlineExceeded
from devicemount_testbed.cluster import Testbed
from devicemount_testbed.errors import TestbedError

RESULTS = Path(__file__).parent / "results"
SETTLE_S = 0.15  # the kubelet still ends the pod's processes when its device is free already


def main() -> None:
    rounds = _rounds_asked()
    began, of = datetime.now(UTC), commit()
    with cluster(Testbed.from_record()) as made:
        run = _run(made, rounds)
    path = RESULTS / f"{began:%Y-%m-%dT%H%MZ}-{of}.json"
    path.parent.mkdir(exist_ok=True)
    facts = {"date": began.isoformat(timespec="seconds"), "commit": of, "machine": machine()}
    path.write_text(json.dumps({**facts, **results(run)}, indent=1) + "\n")
    print(f"\n{tables(run)}\n{path}")
    measured = {(sample.arm, sample.node) for sample in run.samples}
    sys.exit(0 if len(measured) == len(Arm) * len(run.nodes) else 1)


def _rounds_asked() -> int:
    parser = argparse.ArgumentParser(prog="bench", description="latency against the floor")
    parser.add_argument("--samples", type=int, default=20, help="of each arm on each node")
    rounds: int = parser.parse_args().samples
    if rounds < 1:
        parser.error("--samples must be at least 1")
    return rounds


def _run(made: Cluster, rounds: int) -> Run:
    samples: list[Sample] = []
    failures: list[Failure] = []
    loads = []
    for number in range(rounds + 1):
        taken = [_take(made, place, arm, number) for place, arm in _shuffled(made)]
        if number:
            samples += [one for one in taken if isinstance(one, Sample)]
            failures += [one for one in taken if isinstance(one, Failure)]
            loads.append(load_average())
        _progress(f"round {number} of {rounds}" if number else "warm-up", taken)
    return Run(rounds=rounds, samples=tuple(samples), failures=tuple(failures), loads=tuple(loads))


def _shuffled(made: Cluster) -> list[tuple[Place, Arm]]:
    all_of_them = [(place, arm) for place in made.places for arm in Arm]
    random.shuffle(all_of_them)
    return all_of_them


def _take(made: Cluster, place: Place, arm: Arm, number: int) -> Sample | Failure:
    try:
        return MEASURE[arm](made, place, f"{arm.value}-{place.node}-{number}")
    except (ApiError, DeadlineExceeded, TestbedError, Unexpected, grpc.RpcError) as error:
        return Failure(arm=arm, node=place.node, what=" ".join(str(error).split()))
    finally:
        time.sleep(SETTLE_S)


def _progress(what: str, taken: list[Sample | Failure]) -> None:
    cells = [
        f"{one.arm.value} {one.node} "
        + (f"{one.ms[Moment.T1]:.1f} ms" if isinstance(one, Sample) else f"FAILED: {one.what}")
        for one in sorted(taken, key=lambda one: (one.arm.value, one.node), reverse=True)
    ]
    print(f"{what}: {', '.join(cells)}; load {load_average():.1f}", flush=True)


if __name__ == "__main__":
    main()
