import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.vlm.english import singular
from model.vlm.terms import (
    MAX_HAN,
    MAX_LENGTH,
    MAX_TERMS,
    MAX_WORDS,
    named,
    parse,
    without_cut_name,
    without_thoughts,
)

SENTENCES = [
    ("In the image, there is a man riding a horse near a red barn.", "man, horse, barn"),
    ("The image shows a brown dog lying on the grass next to a blue ball.", "dog, grass, ball"),
    ("A dog and two cats", "dog, cat"),
    ("There are two cats and three dogs.", "cat, dog"),
    ("There are trees and houses in the background.", "tree, house"),
    ("A man rides a horse.", "man, horse"),
    ("Two men play the guitar on a small stage.", "man, guitar, stage"),
    ("A large red pickup truck", "pickup truck"),
    ("A shiny, dark blue car and an old wooden chair", "car, chair"),
    ("The dog is brown and white.", "dog"),
    ("The dogs are calm and friendly, and the kitchen is tidy.", "dog, kitchen"),
    ("A dog is on the sofa, and a cat is under it.", "dog, sofa, cat"),
    ("A parked car, a colored pencil, and a framed picture of a horse.", "car, pencil, horse"),
    ("I can see a bus, a traffic light, and several people crossing the street.",
     "bus, traffic light, person, street"),
    ("A cup of coffee and a slice of pizza are on the dining table.", "cup, pizza, dining table"),
    ("A pair of shoes, a bunch of bananas and a bottle of wine", "shoe, banana, bottle"),
    ("A group of people standing in front of a large brick building.", "person, building"),
    ("A woman wearing glasses is holding a cell phone.", "woman, glasses, cell phone"),
    ("A bowl full of fruit sits beside two tomatoes.", "bowl, tomato"),
    ("The table is set with plates, forks, knives and wine glasses.",
     "table, plate, fork, knife, wine glass"),
    ("On the left side of the image, there is a wooden chair; on the right, a potted plant.",
     "chair, potted plant"),
    ("The man's hat is black, and the dogs' bowl is empty.", "hat, dog, bowl"),
    ("It's a photo of a cat sleeping on a sofa. There's also a lamp.", "cat, sofa, lamp"),
    ("A dog without a collar runs across the field.", "dog, field"),
    ("The scene consists of a dog, a cat, etc.", "dog, cat"),
    ("The objects in the image are a clock and a vase.", "clock, vase"),
    ("The image features a person made of snow and a ring.", "person, ring"),
    ("Yes, there is a stuffed animal on the bed, and a sled in the shed.", "stuffed animal, bed, sled, shed"),
    ("The image features a large red pickup truck parked on the side of the road. In addition to the truck, "
     "there are several cars visible in the background, and a person is walking along the sidewalk. "
     "The overall atmosphere is calm and peaceful.", "pickup truck, road, truck, car, person, sidewalk"),
    ("This image depicts a busy city street with people walking and riding bicycles. A taxi is driving "
     "down the road, while a bus is stopped at a traffic light. Two of the people are carrying bags.",
     "city street, person, bicycle, taxi, road, bus, traffic light, bag"),
]  # fmt: skip

LISTS = [
    (" dog, cat, tree.", "dog, cat, tree"),
    ("Dog, Cat, and Tree", "dog, cat, tree"),
    ("dog\ncat\r\ntree", "dog, cat, tree"),
    ("- dog\n- pickup truck\n- cat", "dog, pickup truck, cat"),
    ("* dog\n* cat", "dog, cat"),
    ("• dog\n• cat", "dog, cat"),
    ("1. Dog\n2. Cat\n10) Bus", "dog, cat, bus"),
    ("1. Dog 2. Cat 3. Fire hydrant", "dog, cat, fire hydrant"),
    ("**Dog**, `cat`, _mouse_", "dog, cat, mouse"),
    ("| Object | Count |\n|---|---|\n| dog | 2 |\n| stop sign | 1 |", "dog, stop sign"),
    ("1. **Dog**: a brown dog lying on the grass\n2. **Red ball:** in front of the dog", "dog, ball"),
    ("- Dog - brown, lying on the grass\n- Cat – on a sofa\n- Bus — red", "dog, cat, bus"),
    ("**Dog** - lies on the grass.\n**Cat** - on a sofa.", "dog, cat"),
    ("Here are the objects in the image:\n\n1. A dog\n2. Two cats", "dog, cat"),
    ("Objects: dog, cat", "dog, cat"),
    ("Sure! The image contains the following objects: a dog, a cat.", "dog, cat"),
    ("### Objects\n#### Animals\n- dog\n- cat", "dog, cat"),
    ("Animals:\n- dogs\n- cat\n\nVehicles:\n- bus", "dog, cat, bus"),
    ("- **Animals**\n  - dog\n  - cat\n- **Furniture**\n  - sofa", "dog, cat, sofa"),
    ("1. **Animals**: dog, cat\n2. **Vehicles**: a red car and a bus", "dog, cat, car, bus"),
    ("1. **Dog**:\n   - Color: brown\n   - Position: left\n2. **Cats**:\n   - Size: small", "dog, cat"),
    ("- Trees: tall, in the background\n- Dogs: two dogs near a house", "tree, dog"),
    ("two cats, 3 dogs, 1 bird", "cat, dog, bird"),
    ("dog x2, cat x 3, 2x bird, horse × 4", "dog, cat, bird, horse"),
    ("dogs (3), cat (lying on the sofa), Bus (1)", "dog, cat, bus"),
    ("Dogs: 2\nCats: 3", "dog, cat"),
    ("cars: 3, trees: 12", "car, tree"),
    ("dog, Dog, DOG, dogs, a dog", "dog"),
    ("hot dog, dog, teddy bear, bear, black bear", "hot dog, dog, teddy bear, bear"),
    ("fire_hydrant, traffic_light", "fire hydrant, traffic light"),
    ("T-shirt, TVs, x-ray, ping-pong ball", "t-shirt, tv, x-ray, ping-pong ball"),
    ("🐶 dog, 🐱 cat", "dog, cat"),
    ("Ein Hund und eine Katze, le chien et un chat", "hund, katze, chien, chat"),
    ("<think>Is that a horse?</think>dog, cat", "dog, cat"),
    ("swimming pool, parking lot, running dog", "swimming pool, parking lot, dog"),
    ("**Animals:**\n* Dog (golden retriever)\n* Cat\n\n**Other:**\n* Potted plant", "dog, cat, potted plant"),
    ("Kitchen utensils: knives and forks\nFruits: apples, bananas", "knife, fork, apple, banana"),
    ("*   **Dog:** the main subject.\n*   **Grass**\n\nWould you like to see the sky?", "dog, grass"),
    ("Sure, I'd be happy to help! The objects are:\n- dog\n- cat\nI hope this helps!", "dog, cat"),
]  # fmt: skip

MARKED = [
    ('["dog", "traffic cone"]', "dog, traffic cone"),
    ("['dog', 'two cats']", "dog, cat"),
    ('Here is the list:\n```json\n["dog", "cat"]\n```\nThese are on the grass.', "dog, cat"),
    ('["dog", "cat", "pickup tr', "dog, cat"),
    ('[{"name": "dog", "color": "brown"}, {"name": "Red Car", "color": "red"}]', "dog, car"),
    ('{"objects": [{"label": "dog", "attributes": ["brown", "small"]}, {"label": "cat"}]}', "dog, cat"),
    ('{"objects": ["dog", "cat"], "scene": "park"}', "dog, cat"),
    ('[{"object": "dog"}, {"category": "x"}]', "dog"),
    ('{"image_description": "A dog in a park.", "objects": [{"name": "dog", "bbox_2d": [8, 6, 29, 27], '
     '"description": "A dog."}]}', "dog"),
    ('{"animals": ["dog", "cat"], "vehicles": ["bus"]}', "dog, cat, bus"),
    ('{"dog": 2, "cats": 1}', "dog, cat"),
    ('{"dog": {"count": 2, "color": "brown"}, "cat": {"count": 1}}', "dog, cat"),
    ('{"object_1": "dog", "object_2": "cat"}', "dog, cat"),
    ('```json\n[\n\t{"bbox_2d": [10, 20, 30, 40], "label": "dog"},\n\t{"bbox_2d": [1, 2, 3, 4], '
     '"label": "fire hydrant"}\n]\n```', "dog, fire hydrant"),
    ('[{"bbox_2d": [1, 2, 3, 4], "label": "dog"}, {"bbox_2d": [5, 6', "dog"),
    ("<ref>dog</ref><box>(1,2),(3,4)</box><ref>two cats</ref><box>(5,6),(7,8)</box>", "dog, cat"),
    ("A <ref>brown dog</ref><box>(1,2),(3,4)</box> lies on the grass", "dog"),
    ("<|object_ref_start|>dog<|object_ref_end|><|box_start|>(1,2),(3,4)<|box_end|>", "dog"),
    ('[{"label": "man in a red shirt"}, {"label": "brown dog next to the man"}]', "man, dog"),
    ('{"objects": "dog, two cats"}', "dog, cat"),
    ("<|ref|>stop sign<|/ref|><|det|>[[0, 50, 55, 99]]<|/det|>", "stop sign"),
    ("dog(221,423),(569,886) and a woman(451,381),(733,793)", "dog, woman"),
    ("car[[75, 658, 250, 871], [1, 2, 3, 4]]\nvan[[440, 208, 502, 255]]", "car, van"),
    ("dog<loc_52><loc_330><loc_90><loc_700>cat<loc_1><loc_2><loc_3><loc_4>", "dog, cat"),
]  # fmt: skip

OTHER_SCRIPTS = [
    ("狗、猫，树；车。", "狗, 猫, 树, 车"),
    ("一只狗和两只猫", "狗, 猫"),
    ("图片中有一只狗、红色的汽车和一个女人。", "狗, 汽车, 女人"),
    ("这张图片展示了一只狗在草地上奔跑。背景中有几棵树和一座房子。", "狗, 树, 房子"),
    ("画面中可以看到一名男子骑着自行车，旁边停着一辆红色汽车。", "男子, 自行车, 汽车"),
    ("1. **狗**：一只棕色的狗\n2. **猫**：白色", "狗, 猫"),
    ("1. 狗\n2. 红绿灯", "狗, 红绿灯"),
    ("物体：狗、和服、三明治", "狗, 和服, 三明治"),
    ("犬と猫、りんご、ひと", "犬, 猫, りんご, ひと"),
    ("2匹の犬、和室", "犬, 和室"),
    ("画像には犬と猫がいます。", "犬, 猫"),
    ("이미지에는 개와 고양이가 있습니다.", "개, 고양이"),
    ("개와 고양이, 사과, 수박과 테디 베어", "개, 고양이, 사과, 수박, 테디 베어"),
    ("개, 자동차 및 신호등", "개, 자동차, 신호등"),
    ("собака, кошка и café", "собака, кошка, café"),
    ("कुत्ता, बिल्ली", "कुत्ता, बिल्ली"),
]  # fmt: skip

DENIED = [
    ("stop sign, no parking sign, car, bicycle", "stop sign, car, bicycle"),
    ("I see a dog, no cat, and a bus.", "dog, bus"),
    ("There is no cat, only a dog.", "dog"),
    ("There is not only a dog but also a cat.", "dog, cat"),
    ("neither a dog nor a cat, only a bird", "bird"),
    ("There are no people, animals, or cars visible, just grass.", "grass"),
    ("dog, no cats or birds, bus", "dog, bus"),
    ("There are no cars. There is a dog.", "dog"),
    ("没有狗，只有猫", "猫"),
    ("keine Hunde, eine Katze", "katze"),
    ("0 cats, 2 dogs", "dog"),
    ("zero cats and two dogs", "dog"),
    ("People: 0\nDogs: 2", "dog"),
    ("dogs (2), cats (0)", "dog"),
    ("dogs x2, cats x0", "dog"),
    ("Cats: none, dogs: 2", "dog"),
    ("Person: No\nDog: Yes", "dog"),
    ("- **Person**: No\n- **Dog:** Yes, on the grass", "dog"),
    ("Cat: Not present in the image.\nDog: no collar, brown", "dog"),
    ("Person - none\nDog - two", "dog"),
    ("| Object | Count |\n|---|---|\n| dog | 2 |\n| cat | 0 |", "dog"),
    ("✅ Dog\n❌ Cat", "dog"),
    ("개 없음, 고양이", "고양이"),
    ('{"person": 0, "dog": 2}', "dog"),
    ('{"person": [], "dog": [[1, 2, 3, 4]]}', "dog"),
    ('{"cat": false, "dog": true}', "dog"),
    ("{'dog': True, 'cat': False, 'bird': None}", "dog"),
    ('{"Person": "No", "Dog": "Yes"}', "dog"),
    ('{"dog": "2", "cat": "0"}', "dog"),
    ('{"objects": {"dog": 2, "cat": 0}}', "dog"),
    ('{"animals": {"dog": 2}, "vehicles": {}}', "dog"),
    ('{"kitchen": {"stove": 1, "oven": 0}}', "stove"),
    ('{"num_dogs": 2, "num_cats": 0}', "dog"),
    ('{"dog_count": 2, "cat_count": 0}', "dog"),
    ('{"has_dog": true, "has_cat": false}', "dog"),
    ('[{"label": "cat", "count": 0}, {"label": "dog", "count": 2}]', "dog"),
    ('[{"label": "dog", "bbox_2d": [1, 2, 3, 4], "occluded": false}]', "dog"),
    ('{"present": ["dog"], "absent": ["cat"]}', "dog"),
    ('{"cat": {"count": 0, "location": "left"}, "dog": {"count": 1, "location": "right"}}', "dog"),
    ('{"cat": {"present": false}, "dog": {"present": true}}', "dog"),
    ('{"cat": {"bbox": []}, "dog": {"bbox": [1, 2, 3, 4]}}', "dog"),
    ('{"objects": {"dog": 1, "mask": 0}}', "dog"),
    ('{"Katze": "nein", "Hund": "ja"}', "hund"),
    ("Katze: nein\nHund: ja", "hund"),
    ("cat: 0 instances\ndog: 2 instances", "dog"),
    ("cats - 0\ndogs - 2", "dog"),
    ("cat: 0%\ndog: 90%", "dog"),
    ("cat,0\ndog,2", "dog"),
    ("Not visible: bird, horse\nVisible: dog", "dog"),
    ("Not present:\n- bird\n- horse\n\nVisible:\n- dog", "dog"),
    ("Dog, cat. Absent: bird.", "dog, cat"),
    ("| Thing | Present |\n|---|:-:|\n| dog | yes |\n| cat | no |", "dog"),
]  # fmt: skip

HEADED = [
    ("ASSISTANT: dog, cat", "dog, cat"),
    ("USER: What is there? ASSISTANT: dog, cat", "dog, cat"),
    ("Output: dog, cat", "dog, cat"),
    ("### Response:\ndog, cat", "dog, cat"),
    ("Final answer: dog", "dog"),
    ("Kitchen: stove, sink, fridge", "stove, sink, fridge"),
    ("Living room: sofa, tv\nKitchen: stove, sink", "sofa, tv, stove, sink"),
    ("Living room: sofa, tv; Kitchen: stove, sink", "sofa, tv, stove, sink"),
    ("## Kitchen\n- stove\n- sink\n## Garden\n- tree", "stove, sink, tree"),
    ("```text\ndog, cat\n```", "dog, cat"),
    ("Dog: a brown dog\nCat: brown, on the grass", "dog, cat"),
    ("物体列表：狗，猫，汽车。", "狗, 猫, 汽车"),
]

NUMBERED = [
    ("①狗 ②猫", "狗, 猫"),
    ("❶ dog ❷ cat", "dog, cat"),
    ("1️⃣ dog 2️⃣ cat", "dog, cat"),
    ("Ⅰ. dog\nⅡ. cat", "dog, cat"),
    ("一、狗 二、猫", "狗, 猫"),
    ("１．狗\n２．猫", "狗, 猫"),
    ("（1）狗（2）猫", "狗, 猫"),
    ("・犬\n・猫", "犬, 猫"),
    ("◆犬\n◆猫", "犬, 猫"),
    ("가. 개\n나. 고양이", "개, 고양이"),
    ("а) собака\nб) кошка", "собака, кошка"),
    ("i. dog\nii. cat", "dog, cat"),
    ("• dog • cat", "dog, cat"),
    ("✔ dog ✔ cat", "dog, cat"),
    ("١. كلب\n٢. قطة", "كلب, قطة"),
    ("१. कुत्ता\n२. बिल्ली", "कुत्ता, बिल्ली"),
]

THOUGHT = [
    ("<thinking>maybe a horse</thinking>dog, cat", "dog, cat"),
    ("Maybe a horse.</think>dog", "dog"),
    ("<think>a</think>dog<think>Maybe a horse", "dog"),
    ("<think>a<think>horse</think>horse</think>dog", "dog"),
    ("<THINK>horse</THINK> dog", "dog"),
    ("<reasoning>a horse</reasoning>\ndog", "dog"),
    ("[THINK]horse[/THINK]dog", "dog"),
    ("◁think▷horse◁/think▷dog", "dog"),
    ("<|begin_of_thought|>horse<|end_of_thought|>dog", "dog"),
    ("<|START_THINKING|>horse<|END_THINKING|>dog", "dog"),
    ("<unused94>thought\nhorse<unused95>dog", "dog"),
    ("<｜think｜>horse<｜/think｜>dog", "dog"),
    ('dog <think id="1">Maybe a horse', "dog"),
    ("<|channel|>analysis<|message|>horse<|end|><|start|>assistant<|channel|>final<|message|>dog", "dog"),
]

ESCAPED = [
    (r'{"objects": ["\u72d7", "caf\u00e9 table", "dog"]}', "狗, café table, dog"),
    (r'["\\u72d7"]', "狗"),
    (r'["rock \"n\" roll sign", "d\u00f6ner"]', "rock, döner"),
    (r'[{"name": "\ud83d\udc36 dog", "color": "a\/b"}]', "dog"),
    (r'["d\xog", "cat"]', "dxog, cat"),
    ('{"label": "dog"}\n{"label": "cat"}', "dog, cat"),
    ('["dog" "cat"]', "dog, cat"),
]

NOTHING = [
    "",
    "<think>\nThe user wants a list. Maybe there is a horse",
    "<thought>A horse</thought>",
    "没有人、动物或汽车。",
    '{"dog": 0, "cat": {}}',
    '[{"name": "cat", "present": false}]',
    '{"objects": ["' + "[" * 2000,
    "nothing.",
    "None",
    "N/A",
    "1, 2, 3.",
    "There are no objects in the image.",
    "There are no people, animals, or cars visible.",
    "I'm sorry, I cannot identify the objects in this picture.",
    "I’m sorry, but I can’t help with that.",
    "As an AI language model, I am unable to see images.",
    "Unfortunately, the image is too dark to make out any details.",
    "The image does not contain any recognizable objects.",
    "The image is completely black.",
    "Please provide an image.",
    "The image of the the the the the",
    "抱歉，我无法识别图片中的物体。",
    "[]",
    '{"objects": []}',
    "```json\n[]\n```",
    "```json\n{}\n```",
    '```json\n{"objects": []}\n```',
    "```json\n",
]

COCO = """person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant,
stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe,
backpack, umbrella, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball
bat, baseball glove, skateboard, surfboard, tennis racket, bottle, wine glass, cup, fork, knife,
spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair,
couch, potted plant, bed, dining table, toilet, tv, laptop, mouse, remote, keyboard, cell phone,
microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear, hair drier,
toothbrush"""

LVIS = """aerosol can, air conditioner, alarm clock, awning, baseball cap, bow-tie, cactus, cutting board,
folding chair, frying pan, garbage truck, green bean, high chair, hot-air balloon, ice cream,
ironing board, license plate, light bulb, measuring cup, mug, octopus, paper towel, pants, polar
bear, railing, rocking chair, running shoe, sewing machine, shopping cart, sleeping bag, steering
wheel, sunglasses, sweet potato, swimsuit, table lamp, trash can, trousers, walking stick, water
bottle, watering can, wedding ring, wind chime"""

BUILT_IN = """dog, cat, mouse, bear, frog, monkey, chicken, penguin, fish, octopus, butterfly, turtle, apple,
banana, pizza, donut, car, bus, bicycle, house, tree, ball, guitar, boat, cup, book, key, clock,
lamp, umbrella, cactus, flower, horse, pig, rabbit, lion, rocket, train, hat, shoe"""


def names(answer: str) -> list[str]:
    return [term.text for term in parse(answer)]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [*SENTENCES, *LISTS, *MARKED, *OTHER_SCRIPTS, *DENIED, *HEADED, *NUMBERED, *THOUGHT, *ESCAPED],
)
def test_terms_of_an_answer(answer: str, expected: str) -> None:
    assert names(answer) == expected.split(", ")


@pytest.mark.parametrize("answer", NOTHING)
def test_an_answer_without_objects_has_no_terms(answer: str) -> None:
    assert names(answer) == []


@pytest.mark.parametrize("listed", [COCO, LVIS, BUILT_IN], ids=["coco", "lvis", "built-in"])
def test_the_names_of_data_sets_come_through_unchanged(listed: str) -> None:
    wanted = listed.replace("\n", " ").split(", ")
    for some in (wanted[i : i + MAX_TERMS] for i in range(0, len(wanted), MAX_TERMS)):
        assert names(", ".join(some)) == some


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("There is a Red Car, and two dogs.", ["Car", "dogs"]),
        ("two Wine Glasses, a wine glass", ["Wine Glasses"]),
        ('[{"bbox_2d": [1, 2], "label": "Pickup Trucks"}]', ["Pickup Trucks"]),
        ("1. **Dog**: a brown dog", ["Dog"]),
        ("the man's  teddy   bear", ["teddy   bear"]),
        ("_fire_hydrant_", ["fire_hydrant"]),
        ("图中有两只猫", ["猫"]),
        ("<think>dog</think>a dog", ["dog"]),
        (r'["caf\u00e9 table", "dog"]', [r"caf\u00e9 table", "dog"]),
    ],
)
def test_a_term_knows_the_characters_that_spell_its_first_mention(answer: str, said: list[str]) -> None:
    assert [answer[t.start : t.end] for t in parse(answer)] == said


@pytest.mark.parametrize(
    ("answer", "left"),
    [
        ("dog, umb", "dog, "),
        ("dog, traffic ", "dog, "),
        ("dog, cat, dog", "dog, cat, "),
        ("dog, cat.", "dog, cat."),
        ("dog, cat,", "dog, cat,"),
        ("umb", ""),
        ("- dog\n- **traffic li", "- dog\n- **"),
        ("A man riding a hor", "A man riding a "),
        ('["dog", "umb', '["dog", '),
        ('["dog", "cat"', '["dog", "cat"'),
        ('{"objects": [{"label": "dog"}, {"label": "umb', '{"objects": [{"label": "dog"}, {"label": '),
        ('{"dog": 2, "cat"', '{"dog": 2, '),
        ('{"dog": 2, "cat":', '{"dog": 2, '),
        ('{"dog": 2, "cat": fal', '{"dog": 2, '),
        ('{"dog": "Yes", "cat": "N', '{"dog": "Yes", '),
        ('{"dog": 2', '{"dog": 2'),
        ("```json\n{\n", "```json\n{\n"),
        ("dog <think>The user", "dog <think>The user"),
        ("a dog, a police of", "a dog, a "),
        ("a dog, a police officer and", "a dog, a "),
        ("a dog, a police officer and a", "a dog, a police officer and a"),
        ("a dog, a bus\n", "a dog, a bus\n"),
        ("Animals:", ""),
    ],
)
def test_an_answer_without_the_name_that_a_limit_may_have_cut(answer: str, left: str) -> None:
    assert without_cut_name(answer) == left


@pytest.mark.parametrize(
    "answer",
    [
        "dog, " * 2000,
        "dog " * 2000,
        "There is a dog. " * 500,
        '["dog", ' + '"dog", ' * 2000,
        "1. dog\n" * 1000,
    ],
)
def test_f20_an_endless_loop_is_one_term(answer: str) -> None:
    assert names(answer) == ["dog"]


def test_f6_f20_an_endless_answer_is_cut() -> None:
    assert (
        len(parse(", ".join("dog" + chr(97 + i // 26 % 26) + chr(97 + i % 26) for i in range(600))))
        == MAX_TERMS
    )


def test_f20_what_is_too_long_for_a_name_is_left_out() -> None:
    assert names(f"dog, {'x' * (MAX_LENGTH + 1)}, cat tree bird horse lamp, {'狗' * (MAX_HAN + 1)}, cat") == [
        "dog",
        "cat",
    ]


PIECES = r"""
dog dogs cat tree hot stop sign light paper glass red wooden parked running building glasses leaves women
people image objects man's don't brown bear a the two 3 and or of in on with is are no not sorry to can
there , , , . ; : - * ** 1. # ( ) [ ] { } " ' ` _ < > </ref> <ref> <box> | ``` & / \ {"label":" [" ring s
es ies ves men rides 狗 和 一只 的 图中有 、 ， 犬と猫 개와 사과 무 ß İ café x2 2x é́ 🐶 ½ ①
lying washing machine ein 着 中有 が います 白色 이미지에는 고양이가 있습니다
<think> </think> 0 no, only : 0 {"dog":0 \u72d7 ① ・ 、 ASSISTANT:
""".split()  # noqa: SIM905 (a hundred strings)
WORDS = st.sampled_from([*PIECES, "\n", "\n  - ", " "])
ANSWERS = st.one_of(
    st.text(max_size=200),
    st.lists(WORDS, max_size=40).map(" ".join),
    st.lists(WORDS, max_size=40).map("".join),
)


@given(ANSWERS)
def test_f20_any_text_gives_terms_within_the_limits(answer: str) -> None:
    terms = parse(answer)
    assert len(terms) <= MAX_TERMS
    assert len({term.text for term in terms}) == len(terms)
    for term in terms:
        said = answer[term.start : term.end]
        assert said == said.strip()
        if "\\" not in said:  # as escapes in JSON
            assert singular(" ".join(re.split(r"[\s_*`~#]+", said.lower()))) == term.text
        assert 0 < len(term.text) <= MAX_LENGTH
        assert len(term.text.split()) <= MAX_WORDS
        assert any(c.isalpha() for c in term.text)


MARKS = st.sampled_from(["<think>", "</think>", "<thinking>", "[/THINK]", "dog", "\n", "a horse"])


@given(st.lists(MARKS, max_size=12).map("".join))
def test_f20_no_thought_is_an_answer_and_nothing_moves(answer: str) -> None:
    left = without_thoughts(answer)
    assert len(left) == len(answer)
    assert all(after in (before, "\n") for before, after in zip(answer, left, strict=True))
    assert "think" not in left.lower()


@given(ANSWERS)
def test_an_answer_that_ended_loses_nothing(answer: str) -> None:
    assert answer.startswith(without_cut_name(answer))
    assert without_cut_name(answer + ".\n") == answer + ".\n" or "[" in answer or "{" in answer


@given(ANSWERS)
def test_the_list_of_the_terms_has_the_same_terms(answer: str) -> None:
    found = names(answer)
    assert names(", ".join(found)) == found


@pytest.mark.parametrize(
    ("phrase", "names"),
    [
        ("dog", {"dog": "dog"}),
        ("the red car on the left", {"car": "car"}),
        ("all dogs", {"dog": "dogs"}),
        ("man with a hat", {"man": "man"}),
        ("Dog, two cats", {"dog": "Dog", "cat": "cats"}),
        ("pickup truck", {"pickup truck": "pickup truck"}),
        ("the left one", {"the left one": "the left one"}),
        ("左边的红色汽车", {"汽车": "汽车"}),
    ],
)
def test_what_a_phrase_asks_for(phrase: str, names: dict[str, str]) -> None:
    assert {term.text: phrase[term.start : term.end] for term in named(phrase)} == names
