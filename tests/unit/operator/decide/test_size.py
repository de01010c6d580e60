# SPDX-License-Identifier: Apache-2.0
"""Whatever is to be said, the API server has room for it; an ordinary status is said in full."""

import pytest

from devicemount_operator.api import v1alpha1 as api
from devicemount_operator.decide.size import MAX_BYTES, fitted, size_bytes

WORST = "<"  # a character of which the API server makes six bytes
NODE = api.Node(path=WORST * 512, type="c", major=1, minor=1, access="rw")


def status(*, targets: int = 1, devices: int = 1, nodes: int = 1, holders: int = 0) -> api.Status:
    """Make every text as long as the API allows."""
    device = api.Device(resource=WORST * 253, id=WORST * 253, nodes=(NODE,) * nodes)
    holder = api.Holder(pid=1, command=WORST * 256, pod=WORST * 253, note=WORST * 256)
    row = api.TargetStatus(
        pod_uid="u" * 36,
        pod_name="p" * 253,
        shadow_pods=("dm-11111111-22222222-0",) * api.MAX_SHADOW_PODS,
        devices=(device,) * devices,
        holders=(holder,) * holders,
        message=WORST * api.MAX_MESSAGE,
    )
    condition = api.Condition(
        type="t" * 64, status="True", reason="r" * 64, message=WORST * api.MAX_MESSAGE
    )
    return api.Status(
        conditions=(condition,) * api.MAX_CONDITIONS,
        targets=tuple(row.model_copy(update={"pod_uid": f"{n}"}) for n in range(targets)),
    )


@pytest.mark.parametrize(
    ("found", "left_out"),
    [
        pytest.param(status(), None, id="one device: all of it"),
        pytest.param(status(devices=100), None, id="many devices that fit: all of them"),
        pytest.param(status(devices=16, nodes=64), "files", id="too many files"),
        pytest.param(
            status(devices=512, nodes=2, holders=32),
            "some devices and processes",
            id="too many devices",
        ),
        pytest.param(
            status(targets=32, devices=512, holders=32),
            "devices and processes",
            id="too many devices in many pods",
        ),
    ],
)
def test_it_fits(found: api.Status, left_out: str | None) -> None:
    whole = fitted(found)
    assert size_bytes(whole) <= MAX_BYTES
    if left_out is None:
        assert whole == found
    else:
        message = whole.targets[0].message or ""
        assert message.endswith(f"Not listed, since all of it is too long: {left_out}.")
        assert message.count("Not listed") == 1
    assert api.Status.model_validate(whole.model_dump()) == whole


def test_what_is_measured_is_what_the_api_server_stores() -> None:
    empty = size_bytes(api.Status())
    assert size_bytes(api.Status(ready="<&>")) - empty == len('"ready": "", ') + 18
