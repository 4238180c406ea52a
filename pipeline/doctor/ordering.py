"""The processor, and whether it keeps the order of loads and stores: what is known of it, and the litmus test."""

from __future__ import annotations

from pipeline.doctor.finding import Finding, note, ok, problem
from pipeline.doctor.subject import Subject
from pipeline.shm import litmus, memory_order

MILLION = 1_000_000


def processor(subject: Subject) -> list[Finding]:
    if refusal := memory_order.find_refusal():
        return [problem(refusal, "Until then, run it on another machine.")]
    if caution := memory_order.find_caution():
        return [note(caution, "Run the doctor with --litmus 60 once, and report what does not work.")]
    return [ok("the processor keeps the order of loads and stores, as far as rings need it")]


def run_litmus(seconds: float) -> list[Finding]:
    """Two processes are busy for so long."""
    if refusal := memory_order.find_refusal():
        return [problem(f"nothing was tested: {refusal}", "Until then, run it on another machine.")]
    return judge_litmus(litmus.run(seconds))


def judge_litmus(run: litmus.Run) -> list[Finding]:
    if not run.pairs:
        return [note("there is one processor: loads and stores of others cannot be tested", "Run it on several.")]
    failed = [each for each in run.fenced if each.failures]
    if failed:
        return [
            problem(
                f"loads and stores are out of order, in spite of fences: {litmus.describe(failed)}",
                "Do not run it on this machine. Report this, and the kind of its processor.",
            )
        ]
    untold = [each.name for each in run.fenced if not each.rounds]
    if untold:
        return [note(f"no round of the litmus test could tell the order: {', '.join(untold)}", "Give it more seconds.")]
    rounds = sum(each.rounds for each in run.fenced) / MILLION
    where = ", ".join(f"{one} and {other}" for one, other in run.pairs)
    said = [f"all {rounds:.1f} million rounds are in order, between processors {where}"]
    if run.bare:
        said.append(f"without a fence: {litmus.describe(run.bare)}")
    return [ok("; ".join(said))]
