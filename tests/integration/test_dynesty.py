"""dynesty: `map`, and the number of workers by `size`."""

from __future__ import annotations

import dynesty_evidence
import pytest

pytestmark = pytest.mark.integration


def test_the_evidence_is_right() -> None:
    found, error = dynesty_evidence.evidence(live_points=100)
    assert 0.05 < error < 0.5
    assert found == pytest.approx(dynesty_evidence.EVIDENCE, abs=4.0 * error)
