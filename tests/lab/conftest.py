"""Tests of the lab need scipy and scikit-learn, the extra `lab`."""

import pytest

pytest.importorskip("scipy")
pytest.importorskip("sklearn")
