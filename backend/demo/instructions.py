"""Define the instructions for annotators, which `make demo` prints and docs/label-studio/clicks.md shows.

tests/e2e/test_instructions.py follows them in a real browser. Words between backticks are keys, or labels on
the screen.
"""

CORRECT = """\
To correct what the model found:

1. Press `Label All Tasks`. The first image opens.
2. Turn on `Auto-Annotation`, below the image.
3. Turn on `Auto-Accept Suggestions`, beside it.
4. Press `Auto-Detect`, the last tool beside the image. The browser remembers steps 2 to 4.
5. Hold `Ctrl` and `Alt`, and click a part of a region that does not belong to its object.
6. Press `Submit`. The next image opens: go on with step 5.
"""

ADD = """\
To add an object that was missed, after steps 1 to 4:

1. Press its name, above the image.
2. Press `M`.
3. Click the object, then each further one of that name.
4. Press `Esc`. The name is put away.
"""

NOTES = """\
- Each further click before `Submit` corrects further.
- `Ctrl`+`Z` takes the last click back, also one that left a point and had no answer.
- To add a part that a region misses, click that part. No name may be chosen then.
- Without step 3, press the green tick after your clicks, before `Submit`.
- A click inside a region without `Ctrl` only selects it. Press `Esc`, then go on.
- On a Mac, `Ctrl` is `Cmd`, and `Alt` is `Option`.
"""

TEXT = "\n".join((CORRECT, ADD, NOTES))
