"""`sarif`: what a census found wrong, as SARIF 2.1.0, which code hosts show beside the model's source.

Source: OASIS, Static Analysis Results Interchange Format (SARIF) Version 2.1.0.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from relume._version import __version__
from relume.census import Census, SiteCensus, never_fired_bound
from relume.check.loading import Target

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"

# Rule: level, name, what it says, what to do.
_RULES = {
    "relume/dead-units": (
        "warning",
        "DeadUnits",
        "Units of a site fired on no input.",
        "They add nothing to the model and get no gradient. Lower the learning rate or the weight decay, check the "
        "initialization, or use an activation whose negative side has a slope.",
    ),
    "relume/silent-site": (
        "error",
        "SilentSite",
        "All units of a site are dead: the signal is cut there.",
        "Nothing of the input passes this site. The weights are of no use unless a skip connection leads around it.",
    ),
    "relume/non-finite": (
        "error",
        "NonFinite",
        "Pre-activations of a site are NaN or infinite.",
        "The training has diverged, or the data hold NaN. Check the data, then lower the learning rate or clip "
        "gradients.",
    ),
}


def sarif(census: Census, target: Target, failures: list[str]) -> dict[str, Any]:
    """The census as one SARIF log: a result per site with dead units, and one per site with non-finite ones.

    Args:
        census: of the model that `target` names.
        target: whose file and line the results point to.
        failures: of the limits, kept as properties of the run.
    """
    results = []
    for m in census.sites:
        if m.silent:
            results.append(_result("relume/silent-site", m, target, f"all {m.units:,} units are dead"))
        elif bool(m.dead.any()):
            dead = int(m.dead.sum())
            verb = "is" if dead == 1 else "are"
            results.append(_result("relume/dead-units", m, target, f"{dead:,} of {m.units:,} units {verb} dead"))
        bad = m.tally()["non-finite"]
        if bad:
            results.append(
                _result("relume/non-finite", m, target, f"{bad:,} of {m.units:,} units had NaN or infinite input")
            )
    return {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "relume",
                        "version": __version__,
                        "rules": [
                            {
                                "id": rule,
                                "name": name,
                                "shortDescription": {"text": short},
                                "fullDescription": {"text": short},
                                "help": {"text": advice},
                                "defaultConfiguration": {"level": level},
                            }
                            for rule, (level, name, short, advice) in _RULES.items()
                        ],
                    }
                },
                "results": results,
                "columnKind": "unicodeCodePoints",
                "properties": {"model": census.model, "notes": list(census.notes), "failures": failures},
            }
        ],
    }


def _result(rule: str, m: SiteCensus, target: Target, what: str) -> dict[str, Any]:
    dead = m.dead.nonzero().flatten().tolist()
    bound = ""
    if rule != "relume/non-finite":
        least = never_fired_bound(m.inputs)
        bound = (
            f" None fired on {m.inputs:,} inputs, so each fires on fewer than {least:.2g} of new ones "
            "(95 % confidence)."
        )
    text = f"{m.name} ({m.site.activation}): {what}.{bound}"
    location: dict[str, Any] = {"logicalLocations": [{"fullyQualifiedName": m.name, "kind": "member"}]}
    if target.file is not None:
        location["physicalLocation"] = {
            "artifactLocation": _artifact(target.file),
            "region": {"startLine": target.line},
        }
    return {
        "ruleId": rule,
        "ruleIndex": list(_RULES).index(rule),
        "level": _RULES[rule][0],
        "message": {"text": text},
        "locations": [location],
        # A host keeps one alert per print from run to run, so numbers that change stay out of it.
        "partialFingerprints": {
            "relumeSite/v1": hashlib.sha256(f"{rule}\0{target.text}\0{m.name}".encode()).hexdigest()
        },
        "properties": {"site": m.name, "units": m.units, "inputs": m.inputs, "dead": dead},
    }


def _artifact(file: Path) -> dict[str, str]:
    """Relative to the working folder, as code hosts want it, where the file lies in it."""
    try:
        inside = file.resolve().relative_to(Path(os.getcwd()).resolve())
    except ValueError:
        return {"uri": file.resolve().as_uri()}
    return {"uri": inside.as_posix().replace("%", "%25").replace(" ", "%20"), "uriBaseId": "%SRCROOT%"}
