"""kill -9 at every point of `lab reset`; a sample of it is in test_kill.py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fault.campaign import Campaign, campaign, whole_block

BLOCKS = 6


@pytest.fixture(scope="module")
def bed() -> Iterator[Campaign]:
    with campaign() as made:
        yield made


@pytest.mark.slow
@pytest.mark.parametrize("block", range(BLOCKS))
def test_killed_at_every_point_it_converges(bed: Campaign, block: int) -> None:
    whole_block(bed, "reset", block, BLOCKS)
