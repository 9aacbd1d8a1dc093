"""Words of the skill ``ifeval_style``: what is asked, and how each kind of constraint is put.

They are this project's own: none is a sentence of IFEval. Those of a split are in no other.
"""

PHRASES = {  # with which an answer has to end
    "train": ("That is all I know.", "Now you know as much as I do.", "So much for today."),
    "validation": ("I have nothing to add.",),
    "test": ("Ask me again whenever you like.", "This is where I stop."),
}
NOTES = (  # with placeholders
    "Written by [name].",
    "Sent on [date] from [place].",
    "Call [phone number] to learn more.",
    "Copies are at [address].",
)
# lm-eval's word for a relation: ours
OFTEN = {"at least": "at least", "less than": "fewer than"}
ASKS = {
    "train": (
        "Write a few sentences about {topic}.",
        "Tell me about {topic}.",
        "Describe {topic}.",
        "What do you know about {topic}?",
    ),
    "validation": ("Say something about {topic}.",),
    "test": ("Give me a short text on {topic}.", "What can one say about {topic}?"),
}
# kind of IFEval: wordings of train (3), validation (1) and test (2)
WORDINGS = {
    "keywords:existence": (
        "Use the words {a} and {b}.",
        "Your answer must contain the words {a} and {b}.",
        "Include the keywords {a} and {b}.",
        "Make sure that {a} and {b} occur in the text.",
        "The words {a} and {b} have to appear in it.",
        "Work the words {a} and {b} into your answer.",
    ),
    "keywords:frequency": (
        "The word {keyword} must occur {often} {frequency} times.",
        "Use the word {keyword} {often} {frequency} times.",
        "Say {keyword} {often} {frequency} times.",
        "Let the word {keyword} come up {often} {frequency} times.",
        "I want to read the word {keyword} {often} {frequency} times.",
        "Count the word {keyword}: it has to be there {often} {frequency} times.",
    ),
    "keywords:forbidden_words": (
        "Do not use the words {a} and {b}.",
        "Avoid the words {a} and {b}.",
        "The words {a} and {b} are forbidden.",
        "Leave out the words {a} and {b}.",
        "You may write neither {a} nor {b}.",
        "Get by without the words {a} and {b}.",
    ),
    "keywords:letter_frequency": (
        "The letter {letter} must occur {often} {let_frequency} times.",
        "Use the letter {letter} {often} {let_frequency} times.",
        "Write the letter {letter} {often} {let_frequency} times.",
        "Let the letter {letter} come up {often} {let_frequency} times.",
        "I want to see the letter {letter} {often} {let_frequency} times.",
        "Count the letter {letter}: it has to be there {often} {let_frequency} times.",
    ),
    "length_constraints:number_words": (
        "Write {often} {num_words} words.",
        "Your answer must have {often} {num_words} words.",
        "Use {often} {num_words} words in all.",
        "The text should be {often} {num_words} words long.",
        "Keep to {often} {num_words} words.",
        "A count of your words has to give {often} {num_words}.",
    ),
    "length_constraints:number_paragraphs": (
        "Write exactly {num_paragraphs} paragraphs, separated by ***.",
        "Give {num_paragraphs} paragraphs with the divider *** between them.",
        "There must be {num_paragraphs} paragraphs, divided by three asterisks: ***.",
        "Split the answer into {num_paragraphs} paragraphs by the marker ***.",
        "I want {num_paragraphs} paragraphs, no more and no fewer, with *** between two.",
        "Put the divider *** between paragraphs, of which there are {num_paragraphs}.",
    ),
    "length_constraints:nth_paragraph_first_word": (
        "Write {num_paragraphs} paragraphs with an empty line between them. Paragraph "
        "{nth_paragraph} must begin with the word {first_word}.",
        "There must be {num_paragraphs} paragraphs, separated by a blank line, and paragraph "
        "{nth_paragraph} starts with {first_word}.",
        "Give {num_paragraphs} paragraphs divided by two line breaks. The first word of paragraph "
        "{nth_paragraph} is {first_word}.",
        "Leave a blank line between the {num_paragraphs} paragraphs and open paragraph "
        "{nth_paragraph} with {first_word}.",
        "I want {num_paragraphs} paragraphs with a blank line between two of them, and "
        "{first_word} as the first word of paragraph {nth_paragraph}.",
        "An empty line divides the {num_paragraphs} paragraphs; {first_word} is how paragraph "
        "{nth_paragraph} starts.",
    ),
    "detectable_content:number_placeholders": (
        "Put at least {num_placeholders} placeholders in square brackets into it, such as [city].",
        "The answer must have {num_placeholders} or more placeholders like [city].",
        "Use no fewer than {num_placeholders} placeholders in brackets, as [city].",
        "Leave at least {num_placeholders} gaps in square brackets to fill in, such as [city].",
        "I want to fill in {num_placeholders} placeholders or more; write them as [city].",
        "Square brackets such as [city] must hold at least {num_placeholders} placeholders.",
    ),
    "detectable_content:postscript": (
        "Add a postscript that starts with {postscript_marker}",
        "After the text, write a postscript beginning with {postscript_marker}",
        "There must be a postscript at the end, marked {postscript_marker}",
        "Close with a postscript: {postscript_marker}",
        "Do not forget a postscript, introduced by {postscript_marker}",
        "Something should follow behind a {postscript_marker}",
    ),
    "detectable_format:number_bullet_lists": (
        "Answer in exactly {num_bullets} bullet points that begin with a star.",
        'Give exactly {num_bullets} bullets, each on a line that starts with "*".',
        'Make a list of {num_bullets} bullet points, marked by "*".',
        "Use {num_bullets} bullet points in Markdown, no more and no fewer.",
        'I want a list of exactly {num_bullets} bullets, each with "*" in front.',
        'Bullet points marked by "*" must number {num_bullets}.',
    ),
    "detectable_format:number_highlighted_sections": (
        "Highlight at least {num_highlights} words with asterisks, as in *word*.",
        "Mark at least {num_highlights} words like *this*.",
        "Emphasise {num_highlights} or more words in Markdown, *so*.",
        "Set no fewer than {num_highlights} words in *asterisks*.",
        "I want at least {num_highlights} words to stand out, *like this*.",
        "Asterisks, as in *here*, must highlight {num_highlights} words or more.",
    ),
    "detectable_format:multiple_sections": (
        "Write {num_sections} sections and begin each with {section_spliter} X, as "
        "{section_spliter} 1.",
        "Divide the answer into {num_sections} sections, marked {section_spliter} 1 and so on.",
        "There must be {num_sections} sections, each headed {section_spliter} and its number.",
        "Number the {num_sections} sections of your answer: {section_spliter} 1, then the others.",
        "I want {num_sections} sections with the headings {section_spliter} 1 and so forth.",
        "Headings {section_spliter} X, where X is a number, must open {num_sections} sections.",
    ),
    "detectable_format:title": (
        "Give it a title in double angular brackets, as in <<some words>>.",
        "Begin with a title wrapped like <<this>>.",
        "The answer needs a title, written as <<title>>.",
        "Put a title in brackets of this kind above it: <<title>>.",
        "I want a title on top, set in <<double angular brackets>>.",
        "Double angular brackets, <<so>>, must hold a title.",
    ),
    "detectable_format:json_format": (
        "Answer in JSON.",
        "The whole output must be valid JSON.",
        "Wrap the entire answer in JSON.",
        "Give me JSON and nothing else.",
        "A program must be able to parse all of the answer as JSON.",
        "Use the format JSON for everything you write.",
    ),
    "combination:two_responses": (
        "Give two different answers, separated by six asterisks: ******.",
        "Write two answers that differ, with ****** between them.",
        "Answer twice in different words and put ****** between the answers.",
        "I would like two versions, divided by ******.",
        "Offer exactly two different answers; the line ****** stands between them.",
        "Six asterisks, ******, must separate two answers that are not the same.",
    ),
    "startend:end_checker": (
        'End with exactly these words: "{end_phrase}"',
        'The last words must be: "{end_phrase}"',
        'Finish with "{end_phrase}" and nothing after it.',
        'Let "{end_phrase}" be the end of your answer.',
        'I want to read "{end_phrase}" at the very end.',
        'Nothing may follow the words "{end_phrase}" with which you close.',
    ),
    "startend:quotation": (
        "Wrap the whole answer in double quotation marks.",
        "Put double quotes around your entire answer.",
        "Begin and end the answer with a double quotation mark.",
        "Your answer should stand in double quotation marks.",
        "I want all of the answer between double quotes.",
        "A double quotation mark must be the first and the last character.",
    ),
    "punctuation:no_comma": (
        "Do not use any commas.",
        "Write without commas.",
        "There must be no comma in your answer.",
        "Leave out all commas.",
        "I do not want to see a single comma.",
        "Commas are not allowed.",
    ),
    "change_case:english_lowercase": (
        "Write in lowercase letters alone.",
        "Use no capital letters.",
        "The whole answer must be in lower case.",
        "Keep everything in small letters.",
        "I do not want to see a single capital letter.",
        "Capital letters are not allowed.",
    ),
    "change_case:english_capital": (
        "Write everything in capital letters.",
        "Use capital letters alone.",
        "The whole answer must be in upper case.",
        "Keep everything in capitals.",
        "I do not want to see a single small letter.",
        "Lowercase letters are not allowed.",
    ),
}
OF_SPLIT = {"train": slice(0, 3), "validation": slice(3, 4), "test": slice(4, 6)}
