"""A run as JUnit XML, one test case a case: what continuous integration shows of a parity run. Imports no torch."""

from io import BytesIO
from pathlib import Path

import junitparser
from junitparser.junitparser import FinalResult

from bench.render.files import write_file
from bench.types import FINE, Result, Run, Status


def write(run: Run, file: Path) -> Path:
    """Write the run's results to `file` and return it, creating its parent directories.

    `unsupported` is skipped with its reason, `parity-failed` is a failure that lists the tensors, and a case that did
    not get as far as a verdict is an error; so is a case of the plan that has no result.

    Raises:
        ValueError: the file cannot be written.
    """
    suite = junitparser.TestSuite(run.plan.name)
    suite.add_testcases([*map(_testcase, run.results), *(_missing(case.key) for case in run.pending)])
    xml = junitparser.JUnitXml()
    xml.add_testsuite(suite)
    text = BytesIO()
    xml.write(text, pretty=True)
    return write_file(file, text.getvalue())


def _testcase(result: Result) -> junitparser.TestCase:
    testcase = junitparser.TestCase(
        result.case.key,
        classname=f"{result.case.model}.{result.case.path}",
        time=round(sum(result.phases_s.values()), 3),
    )
    if outcome := _outcome(result):
        testcase.result = [outcome]
    return testcase


def _outcome(result: Result) -> FinalResult | None:
    if result.status is Status.VALID:
        return None
    if result.status in FINE:
        return junitparser.Skipped(result.reason)
    kind = junitparser.Failure if result.status is Status.PARITY_FAILED else junitparser.Error
    outcome = kind(result.reason, result.status.value)
    outcome.text = _tensors(result)
    return outcome


def _missing(key: str) -> junitparser.TestCase:
    testcase = junitparser.TestCase(key)
    testcase.result = [junitparser.Error("The run ended before this case was started.", "not run")]
    return testcase


def _tensors(result: Result) -> str:
    """The tensors that failed, in execution order, one a line."""
    if result.parity is None:
        return result.reason
    lines = [
        f"{failure.tensor}: error {failure.error:.3g}, allowed {failure.tolerance:.3g}, eager {failure.eager_error:.3g}"
        for failure in result.parity.failures
    ]
    unlisted = result.parity.failed - len(lines)
    return "\n".join([*lines, f"and {unlisted} more"] if unlisted > 0 else lines)
