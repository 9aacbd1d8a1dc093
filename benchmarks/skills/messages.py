"""A customer's message, judged by ``messages_satisfaction`` or by ``messages_urgency``.

Both skills have the labels none, low, medium and high. A message says something of both, drawn
independently of each other: the label of the one is right for the other in a quarter of all cases.
"""

from benchmarks.skills._pair import Drawn, PairSkill

LABELS = ("none", "low", "medium", "high")
ITEMS = "lamp kettle router printer bicycle heater camera washer phone tablet"
SATISFACTION = {
    "none": (
        "The {item} is a disgrace and I regret every cent.",
        "This is the worst {item} that I have ever owned.",
        "I hate this {item} and everything about it.",
        "Your {item} is complete rubbish.",
        "Never again will I buy a {item} from you.",
        "I am furious about this useless {item}.",
        "The {item} is a total failure from start to end.",
        "What a terrible {item}, I feel cheated.",
        "The {item} ruined my week and I am disgusted.",
        "This {item} is garbage and an insult.",
        "I am outraged at how awful the {item} is.",
        "Absolutely horrible {item}, nothing about it works.",
    ),
    "low": (
        "The {item} is a bit of a letdown.",
        "I expected somewhat more from the {item}.",
        "The {item} has more faults than I would like.",
        "I am not really happy with the {item}.",
        "The {item} is slightly worse than my old one.",
        "Sadly the {item} feels rather cheap.",
        "The {item} disappoints me a little.",
        "I have some complaints about the {item}.",
        "The {item} is weaker than the advert says.",
        "I am mildly annoyed by the {item}.",
        "The {item} falls short of what I hoped.",
        "The {item} is rather noisy and not quite what I wanted.",
    ),
    "medium": (
        "The {item} is okay, neither good nor bad.",
        "The {item} is average.",
        "The {item} does its job, no more and no less.",
        "I find the {item} acceptable.",
        "The {item} is fair for what it costs.",
        "The {item} is about what I expected.",
        "The {item} is ordinary but it works.",
        "I have mixed feelings, but the {item} is fine.",
        "The {item} is all right, I suppose.",
        "The {item} is a standard one, decent enough.",
        "I feel neutral about the {item}.",
        "The {item} is so-so, like most of them.",
    ),
    "high": (
        "I love the {item}, it is wonderful.",
        "The {item} is the best thing that I ever bought.",
        "What a fantastic {item}, thank you so much.",
        "The {item} is perfect in every way.",
        "I am delighted with my {item}.",
        "The {item} is excellent and a joy to use.",
        "My whole family adores the {item}.",
        "Brilliant {item}, five stars from me.",
        "The {item} is superb, I tell all my friends.",
        "I could not be happier with the {item}.",
        "The {item} is amazing, great work.",
        "Such a beautiful {item}, I am thrilled.",
    ),
}
URGENCY = {
    "none": (
        "No reply is needed.",
        "You need not do anything.",
        "This is just for your records.",
        "I only wanted to let you know.",
        "Nothing has to be done about it.",
        "Please do not write back.",
        "There is no need to act.",
        "I ask for nothing.",
        "No action is required from your side.",
        "This is only feedback, nothing more.",
        "You can file this away.",
        "I do not expect an answer.",
    ),
    "low": (
        "Write back whenever you find the time.",
        "There is no hurry at all with my question about the manual.",
        "Send me the spare part some day.",
        "Sometime in the coming months a visit would be nice.",
        "Take your time with the receipt.",
        "Any time this year is early enough for the repair.",
        "When you have a quiet hour, send me the list.",
        "The exchange can wait for a while.",
        "I can wait a few months for the cable.",
        "At your leisure, tell me the opening hours.",
        "It is not pressing, but I would like a catalogue.",
        "One day I should like a second remote.",
    ),
    "medium": (
        "Please answer within this week.",
        "I would like a reply in the next few days.",
        "Could you send the part by next Friday?",
        "Please call me later this week.",
        "I need the receipt in about a week.",
        "Do get back to me within five days.",
        "The repair should be done by the weekend.",
        "Please settle it in the course of the week.",
        "I hope to hear from you in three or four days.",
        "Kindly send the form before next Monday.",
        "A visit in the coming week would be good.",
        "Please deal with the refund within seven days.",
    ),
    "high": (
        "Call me right now.",
        "I need help immediately.",
        "Send somebody within the hour.",
        "This must be fixed today.",
        "It is an emergency, please hurry.",
        "Answer at once, it cannot wait.",
        "I need a technician this very minute.",
        "There is smoke, come as fast as you can.",
        "Please act instantly, every minute counts.",
        "I must have an answer before noon today.",
        "Urgent, ring me without delay.",
        "Drop everything and help me now.",
    ),
}
OF = {"satisfaction": SATISFACTION, "urgency": URGENCY}


class Messages(PairSkill):
    """reference: ``{"answer": one of LABELS}``."""

    pair = "messages"
    seed = 20261204
    tasks = ("satisfaction", "urgency")
    chance = 1 / len(LABELS)
    description = (
        "how satisfied a customer's message is, or how urgent, in the same four labels; made by a "
        "seeded generator of this project"
    )
    max_new_tokens = 8
    pinned = {
        "satisfaction": {
            "train": "2a85ff0447462a017198e9ac70b18c50c90fbda7e3308bf7464769d18c1d2aba",
            "validation": "c7344fca8b76f85699f4e64035ab79bdea4cbd7cf34a1bc4da4f436134652256",
            "test": "70f3153219bed794d8bc894e7488075ace8fa6c671ce0922f18e97549b9b269c",
        },
        "urgency": {
            "train": "aac6027892ee274c8ba111357d28b65b0a685b5e64f8189fa27256f04643d960",
            "validation": "b37f292e3c9b5d6ff14d72f70ef80d1968ee68c08f579ad12452989720ffe9f5",
            "test": "707fcded3e57ba480da653a899da7bd62a59f6c311002ddfeac6bf9925e8f599",
        },
    }

    @classmethod
    def draw(cls, rng, task, place):
        """The labels of a skill take turns, so that the first rows are a sample of all."""
        labels = {name: rng.choice(LABELS) for name in OF}
        labels[task] = LABELS[place % len(LABELS)]
        said = {name: rng.choice(OF[name][label]) for name, label in labels.items()}
        sentences = list(said.values())
        rng.shuffle(sentences)
        text = " ".join(sentences).format(item=rng.choice(ITEMS.split()))
        question = f"Message: {text}\nWrite the {task}: none, low, medium or high."
        return Drawn(tuple(said.values()), question, {"answer": labels[task]})
