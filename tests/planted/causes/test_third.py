"""Trainings planted by a second outsider, each with a control; half of them were looked at only at the end.

One seed each; `benchmarks/diagnosis.py --corpus third` (or fourth) runs many and prints the confusion matrix.
"""

import pytest

import relume

#: Held back, and diagnosed otherwise: what is planted there is not what relume says. Named here so that a change shows.
MISSED = {
    "the residual stream is pushed from below": "no single part stands out",
    "tanh convolution with filters of deviation 100": "blank corners of the images leave each unit some slope",
}


def test_an_accepted_cause_comes_first(controlled, request):
    if controlled.name in MISSED:
        request.applymarker(pytest.mark.xfail(strict=True, reason=MISSED[controlled.name]))
    findings = relume.diagnose(controlled.run(0))
    grave = [f for f in findings if f.severity != "note" and controlled.site in (None, f.site)]
    said = [(f.code, f.site, f.sentence) for f in grave]
    if controlled.accepted is None:
        assert not grave, said
    else:
        assert grave, "nothing was named"
        assert grave[0].code in controlled.accepted, said
