"""Run vision-language models: questions, answers, the terms in them, presence and boxes."""
