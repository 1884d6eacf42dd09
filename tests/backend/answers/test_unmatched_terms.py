import pytest

from backend.answers import unmatched_terms
from backend.answers.unmatched_terms import UnknownProject, UnmatchedTerms
from backend.labelstudio.labeling_config import parse
from tests.support.labeling_configs import CONFIG

CATS_AND_DOGS = parse(CONFIG)


def with_label(name: str) -> str:
    return CONFIG.replace('<Label value="Cat"/>', f'<Label value="Cat"/><Label value="{name}"/>')


def test_images_are_counted_not_detections() -> None:
    seen = UnmatchedTerms()
    seen.add("7.1", CATS_AND_DOGS, "image 1", ["cone", "cone", "cup"])
    seen.add("7.1", CATS_AND_DOGS, "image 2", ["cone"])
    seen.add("7.1", CATS_AND_DOGS, "image 2", ["cone", "pole"])  # annotated again
    assert seen.report("7.1") == ("7.1", [("cone", 2), ("cup", 1), ("pole", 1)])


def test_a_project_sees_its_own_terms_only() -> None:
    seen = UnmatchedTerms()
    seen.add("7.1", CATS_AND_DOGS, "same image", ["cone"])
    seen.add("77.1", CATS_AND_DOGS, "same image", ["cup", "cone"])
    assert seen.report("7") == ("7.1", [("cone", 1)])
    assert dict(seen.report("77.1")[1]) == {"cup": 1, "cone": 1}
    for stranger in ("", "8", "7.", "7.12", "%", "7.1,77.1"):
        with pytest.raises(UnknownProject):
            seen.report(stranger)


def test_two_label_studios_may_have_a_project_of_one_number() -> None:
    seen = UnmatchedTerms()
    seen.add("7.1699", CATS_AND_DOGS, "image", ["cone"])
    assert seen.report()[0] == "7.1699"
    seen.add("7.1700", CATS_AND_DOGS, "image", ["cup"])
    with pytest.raises(UnknownProject, match=r"one of 7\.1699, 7\.1700"):
        seen.report("7")
    assert seen.report("7.1700")[1] == [("cup", 1)]


def test_a_project_whose_terms_all_have_labels_is_known() -> None:
    seen = UnmatchedTerms()
    seen.add("7.1", CATS_AND_DOGS, "image", [])
    assert seen.report("7") == ("7.1", [])
    with pytest.raises(UnknownProject, match=r"No image of project 8 was annotated since"):
        seen.report("8")


def test_a_term_leaves_the_report_when_it_gets_a_label() -> None:
    seen = UnmatchedTerms()
    seen.add("7.1", CATS_AND_DOGS, "image", ["cone", "cup"])
    seen.configure("7.1", parse(with_label("Cones")))
    seen.configure("8.1", CATS_AND_DOGS)
    assert seen.report() == ("7.1", [("cup", 1)])


def test_no_more_projects_are_kept_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unmatched_terms, "MAX_PROJECTS", 5)
    seen = UnmatchedTerms()
    for number in range(20):
        seen.add(f"{number}.1", CATS_AND_DOGS, "image", ["cone"])
    assert [seen.report(f"{number}")[1] for number in range(15, 20)] == [[("cone", 1)]] * 5
    with pytest.raises(UnknownProject):
        seen.report("14")


def test_reading_the_report_keeps_no_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unmatched_terms, "MAX_PROJECTS", 2)
    terms = UnmatchedTerms()
    for project in ("1", "2", "1"):
        terms.add(project, CATS_AND_DOGS, "image", ["truck"])
    terms.report("2")
    terms.configure("2", CATS_AND_DOGS)
    terms.add("3", CATS_AND_DOGS, "image", ["truck"])
    assert terms.report("1") == ("1", [("truck", 1)])
    with pytest.raises(UnknownProject):
        terms.report("2")


def test_no_more_terms_are_kept_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unmatched_terms, "MAX_TERMS", 5)
    seen = UnmatchedTerms()
    for number in range(20):
        seen.add("1.1", CATS_AND_DOGS, "image", [f"thing {number}"])
    assert len(seen.report()[1]) == 5


def test_an_image_whose_sighting_was_forgotten_counts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unmatched_terms, "MAX_SIGHTINGS", 5)
    seen = UnmatchedTerms()
    for image in ("a", "b", "c", "d", "e", "a", "b"):
        seen.add("1.1", CATS_AND_DOGS, image, ["cone"])
    assert seen.report()[1] == [("cone", 5)]
    for image in ("f", "b", "c"):  # f drives out c, which is the oldest
        seen.add("1.1", CATS_AND_DOGS, image, ["cone"])
    assert seen.report()[1] == [("cone", 7)]


def test_the_rarest_term_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unmatched_terms, "MAX_TERMS", 2)
    seen = UnmatchedTerms()
    for image, terms in (("1", ["cone"]), ("2", ["cone", "cup"]), ("3", ["pole"])):
        seen.add("7.1", CATS_AND_DOGS, image, terms)
    assert seen.report()[1] == [("cone", 2), ("pole", 1)]
