"""`sarif`: what a census found wrong, as SARIF 2.1.0, which code hosts show beside the model's source; `sarif_log`:
any results of relume's as such a log.

Source: OASIS, Static Analysis Results Interchange Format (SARIF) Version 2.1.0.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    properties = {"model": census.model, "notes": list(census.notes), "failures": failures}
    rules = [Rule(rule, name, level, short, advice) for rule, (level, name, short, advice) in _RULES.items()]
    return sarif_log(rules, results, properties)


@dataclass(frozen=True)
class Rule:
    """A kind of result.

    Attributes:
        id: as in "relume/dead-units".
        name: in CamelCase.
        level: "error", "warning" or "note", unless a result says otherwise.
        text: what it is, one sentence.
        advice: what to do.
        page: of the documentation, or "".
    """

    id: str
    name: str
    level: str
    text: str
    advice: str
    page: str = ""

    def to_dict(self) -> dict[str, Any]:
        help_text = f"{self.advice} See {self.page}." if self.page else self.advice
        return {
            "id": self.id,
            "name": self.name,
            "shortDescription": {"text": self.text},
            "fullDescription": {"text": self.text},
            "help": {"text": help_text},
            "defaultConfiguration": {"level": self.level},
        }


def sarif_log(
    rules: Sequence[Rule], results: Sequence[dict[str, Any]], properties: Mapping[str, Any]
) -> dict[str, Any]:
    """One run of relume as a SARIF log; `properties` are kept with the run."""
    return {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {"name": "relume", "version": __version__, "rules": [rule.to_dict() for rule in rules]}
                },
                "results": list(results),
                "columnKind": "unicodeCodePoints",
                "properties": dict(properties),
            }
        ],
    }


def location(site: str, file: Path | None = None, line: int = 1) -> dict[str, Any]:
    """Where a result is: the site, and the file that its model is made in, where that is known."""
    found: dict[str, Any] = {"logicalLocations": [{"fullyQualifiedName": site, "kind": "member"}]}
    if file is not None:
        found["physicalLocation"] = {"artifactLocation": _artifact(file), "region": {"startLine": line}}
    return found


def fingerprint(*of: str) -> str:
    """A host keeps one alert per print from run to run, so numbers that change stay out of it."""
    return hashlib.sha256("\0".join(of).encode()).hexdigest()


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
    return {
        "ruleId": rule,
        "ruleIndex": list(_RULES).index(rule),
        "level": _RULES[rule][0],
        "message": {"text": text},
        "locations": [location(m.name, target.file, target.line)],
        "partialFingerprints": {"relumeSite/v1": fingerprint(rule, target.text, m.name)},
        "properties": {"site": m.name, "units": m.units, "inputs": m.inputs, "dead": dead},
    }


def _artifact(file: Path) -> dict[str, str]:
    """Relative to the working folder, as code hosts want it, where the file lies in it."""
    try:
        inside = file.resolve().relative_to(Path(os.getcwd()).resolve())
    except ValueError:
        return {"uri": file.resolve().as_uri()}
    return {"uri": inside.as_posix().replace("%", "%25").replace(" ", "%20"), "uriBaseId": "%SRCROOT%"}
