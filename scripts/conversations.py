"""Conversations of twelve turns with three changes of feeling, with the embedded model, to be read.

    python scripts/conversations.py                                      # all five
    python scripts/conversations.py --only 2 3 > docs/conversations.md   # those in the docs

Nothing is edited: one seed, the app's sampling at temperature 0.7.
"""

from __future__ import annotations

import argparse

import mlx_emotion

SEED = 1
# (title, four feelings of three turns each, twelve messages)
CONVERSATIONS = [
    (
        "A day off",
        ("calm", "joy", "surprise", "tiredness"),
        (
            "Hello, little one.",
            "It has been raining since breakfast.",
            "I think I'll stay in and make some coffee.",
            "There is a lemon cake in the oven as well.",
            "My best friend comes over this afternoon.",
            "We want to listen to old music together.",
            "Guess what, she brought her dog along!",
            "He ate a whole slice from the table.",
            "Why?",
            "Now we are watching a film.",
            "It's late, and I can't sleep after all that coffee.",
            "Good night, see you tomorrow.",
        ),
    ),
    (
        "Monday",
        ("anger", "neutral", "sadness", "calm"),
        (
            "The train was late again this morning.",
            "So I came late to the meeting.",
            "My boss made a remark in front of everybody.",
            "What should I say to him tomorrow?",
            "There is also a deadline on Thursday.",
            "Do you have a tip for the printer, too?",
            "My landlord wants more rent from March on.",
            "I would have to move away from here.",
            "What do you mean?",
            "I went for a walk to the sea instead.",
            "You could see all the stars.",
            "Thank you for listening.",
        ),
    ),
    (
        "The old house",
        ("neutral", "fear", "disgust", "joy"),
        (
            "Hi, what's your name?",
            "What can you do?",
            "We moved into our new house on Saturday.",
            "Last night there were footsteps in the attic.",
            "Is somebody up there?",
            "Tell me more.",
            "There was a fat spider in the bathroom as well.",
            "And the fridge had not been cleaned for years.",
            "We made soup all the same.",
            "The garden is full of roses.",
            "Our neighbour gave us plums over the fence.",
            "Tell me a joke before I go.",
        ),
    ),
    (
        "Visiting",
        ("joy", "sadness", "anger", "neutral"),
        (
            "Good morning! How are you?",
            "I'm going to see my grandparents today.",
            "Grandma always bakes too much.",
            "Grandpa is not so well any more.",
            "Their old cat died in the winter.",
            "Really?",
            "On the way back I stood in a traffic jam for two hours.",
            "Then my phone had no battery left.",
            "And somebody had taken my bicycle.",
            "What do I do now?",
            "Well, I'm going to the doctor on Friday anyway.",
            "Bye, and thanks.",
        ),
    ),
    (
        "Nerves",
        ("fear", "anger", "surprise", "joy"),
        (
            "I have an exam tomorrow.",
            "And the dentist the day after.",
            "I keep lying awake at night.",
            "My brother says I'm stupid.",
            "We had a big argument about it.",
            "How so?",
            "Today he came and said sorry.",
            "He even brought me a pizza.",
            "And he wants to go to the mountains with me.",
            "The exam went well!",
            "We are having a party on Saturday.",
            "You are a good companion.",
        ),
    ),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="*", type=int, default=range(1, 1 + len(CONVERSATIONS)), metavar="NUMBER")
    chosen = parser.parse_args().only
    model = mlx_emotion.load("embedded")
    print("# Conversations\n")
    count = f"{len(chosen)} of the script's {len(CONVERSATIONS)}"
    print(f"Twelve turns with the embedded model, three changes of feeling, {count} conversations, unedited:\n")
    print(f"```\npython scripts/conversations.py --only {' '.join(map(str, chosen))}\n```")
    for number in chosen:
        title, feelings, messages = CONVERSATIONS[number - 1]
        print(f"\n## {title}\n")
        chat = model.chat(temperature=0.7)
        for n, message in enumerate(messages):
            if n % 3 == 0:
                chat.feel(feelings[n // 3])
                print(f"*{feelings[n // 3]}*\n")
            *_, done = chat.stream(message, seed=SEED + n)
            print(f"> {message}\n\n{done.text}\n")


if __name__ == "__main__":
    main()
