"""Findings of a diagnosis for machines: JSON, and SARIF with one rule per code."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from relume.check.sarif import Rule, fingerprint, location, sarif_log
from relume.diagnose import Finding
from relume.diagnose.remedies import REMEDIES
from relume.report.words import CAUSES, cause
from relume.watch import Run


def described(run: Run) -> dict[str, Any]:
    """What was run, and up to where, as plain data."""
    about = {k: v for k, v in run.about.items() if k not in ("status", "started", "ended")}
    last = run.windows[-1].last_step if run.windows else None
    return {"file": str(run.path), "status": run.status, "last_step": last, "windows": len(run.windows), **about}


def findings_json(findings: Sequence[Finding], run: Run) -> dict[str, Any]:
    """Findings and what was run, as plain data."""
    return {"run": described(run), "findings": [f.to_dict() for f in findings]}


def findings_sarif(findings: Sequence[Finding], run: Run) -> dict[str, Any]:
    """Findings as a SARIF log: a result each, whose level is the finding's severity.

    Results are placed by the site, and by the script where `relume run` started it.
    """
    codes = list(dict.fromkeys([*CAUSES, *(f.code for f in findings)]))
    script = Path(str(run.about["script"])) if "script" in run.about else None
    file = script if script is not None and script.is_file() else None
    results = [
        {
            "ruleId": f"relume/{f.code}",
            "ruleIndex": codes.index(f.code),
            "level": f.severity,
            "message": {"text": f.sentence if f.confirmation is None else f"{f.sentence} {f.confirmation.sentence}"},
            "locations": [location(f.site or str(run.about.get("model", "")), file)],
            "partialFingerprints": {"relumeFinding/v1": fingerprint(f.code, str(run.about.get("model", "")), f.site)},
            "properties": f.to_dict(),
        }
        for f in findings
    ]
    return sarif_log([_rule(code) for code in codes], results, {"run": described(run)})


def _rule(code: str) -> Rule:
    advice = [remedy.text for remedy in REMEDIES.get(code, ())]
    title = cause(code).title
    return Rule(
        id=f"relume/{code}",
        name=code.title().replace("-", ""),
        level="note" if code == "sparse" else "warning",
        text=f"{title}.",
        advice=f"Best first: {'; '.join(advice)}." if advice else "The evidence is with each result.",
        page=f"docs/findings/{code}.md",
    )
