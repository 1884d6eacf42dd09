from typing import Any

import pytest

from backend.doctor.finding import FAILED, NOTE, OK
from tests.support.doctor_studio import TRIED, TRY, Answer, Studio, many_tasks


@pytest.mark.parametrize(
    ("answer", "status", "said"),
    [
        ((200, {"task": {"id": 5}, "response": [{"result": [{}, {}]}]}), OK, "Task 5 got 2 results"),
        ((200, {"task": {"id": 5}, "response": [{"result": []}]}), NOTE, "Task 5 got no regions"),
        ((200, {"task": {"id": 5}, "response": []}), NOTE, "VLSAM_ON_OPEN=prewarm"),
        ((200, {"task": {"id": 5}, "response": [{}]}), FAILED, "could not annotate task 5"),
        ((500, {"detail": "ML backend did not return"}), FAILED, "got no prediction"),
    ],
)
@pytest.mark.parametrize("known", [{"result": [], "reason": "This model has no answer to the event."}, None])
def test_a_server_that_does_not_say_what_it_saw(
    studio: Studio, known: Any, answer: Answer, status: str, said: str
) -> None:
    studio.answers[TRY] = (200, {"data": known}) if known else (404, {})
    studio.answers["POST /api/ml/7/predict/test"] = answer
    (found,) = (finding for finding in studio.findings() if finding.check == "trial")
    assert found.status == status
    assert said in found.message
    assert "where `vlsam serve` was started" in studio.find("log").message


@pytest.mark.parametrize(
    ("total", "tried"), [(1, [1]), (3, [1, 2, 3]), (5, [1, 2, 3, 4, 5]), (100, [1, 21, 41, 61, 81])]
)
def test_some_tasks_are_tried_all_over_the_project(studio: Studio, total: int, tried: list[int]) -> None:
    many_tasks(studio, total)
    findings = studio.findings()
    assert [f.message.partition(" got")[0] for f in findings if f.check == "trial"] == [
        f"Task {10 * place}" for place in tried
    ]


def test_a_task_that_fails_takes_no_other_along(studio: Studio) -> None:
    many_tasks(studio, 3)
    answers = iter(
        [{"data": TRIED}, {"errors": ["Read timed out"]}, {"data": {**TRIED, "reason": "Too big."}}]
    )
    studio.makers[TRY] = lambda: (200, next(answers))
    trials = [finding for finding in studio.findings() if finding.check == "trial"]
    assert [(finding.status, finding.message.partition(" got")[0]) for finding in trials] == [
        (OK, "Task 10"), (FAILED, "Label Studio"), (FAILED, "Task 30: Too big."),
    ]  # fmt: skip
    assert "task 20: ['Read timed out']" in trials[1].message


def test_f37_terms_without_a_label_are_named_with_the_line_to_add(studio: Studio) -> None:
    many_tasks(studio, 5)
    seen = iter(
        [["traffic cone", "cart"], ["traffic cone"], [], ["traffic cone", "traffic cone"], ['a "b" & c']]
    )

    def one_more() -> Answer:
        found = next(seen)
        return 200, {"data": {**TRIED, "result": [], "seen": found, "unlabelled": found}}

    studio.makers[TRY] = one_more
    trials = [finding for finding in studio.findings() if finding.check == "trial"]
    assert len(trials) == 6
    assert trials[1].message == "Task 20 got no regions: the model saw traffic cone."
    assert trials[2].message == "Task 30 got no regions: the model found no object."
    assert trials[5].status == NOTE
    assert trials[5].message == (
        'Seen without a label: traffic cone (3 of 5 tasks), cart (1 of 5 tasks), a "b" & c (1 of 5 tasks).'
    )
    assert trials[5].cure == (
        'add <Label value="Traffic cone"/>, or predicted_values="traffic cone" to the label that means it; '
        "and so for the others"
    )
