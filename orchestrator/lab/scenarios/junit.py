"""The results as JUnit XML, the form that build servers read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree

from orchestrator.lab.scenarios.result import ScenarioResult, Verdict

# XML 1.0 section 2.2: these control characters cannot stand in a document at all.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(results: Sequence[ScenarioResult], suite: str) -> bytes:
    """One `testsuite`; a scenario that is not applicable is `skipped`, one that broke is an `error`."""
    root = ElementTree.Element(
        "testsuite",
        name=suite,
        tests=str(len(results)),
        failures=str(sum(r.verdict is Verdict.FAILED for r in results)),
        errors=str(sum(r.verdict is Verdict.ERROR for r in results)),
        skipped=str(sum(r.verdict is Verdict.NOT_APPLICABLE for r in results)),
        time=f"{sum(r.seconds for r in results):.1f}",
    )
    tags = {Verdict.FAILED: "failure", Verdict.ERROR: "error", Verdict.NOT_APPLICABLE: "skipped"}
    for result in results:
        case = ElementTree.SubElement(
            root, "testcase", classname="lab", name=result.name, time=f"{result.seconds:.1f}"
        )
        if tag := tags.get(result.verdict):
            ElementTree.SubElement(case, tag, message=_clean(result.why)).text = _clean(
                f"expected: {result.expected}\nobserved: {result.observed}"
            )
        ElementTree.SubElement(case, "system-out").text = _clean(f"evidence: {result.evidence}")
    return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("?", text)
