"""What a teacher is shown in place of the last user turn."""

_SOURCE = "This is a text that the answer to the question rests on:\n{source}\n\n"
_EXAMPLE = "This is an example for a response to the question:\n{demonstration}\n\n"
_OWN = "Now answer with a response of your own, including the thinking process:"
# What stands in place of the last user turn for the teacher. Data, so that an order file can hold
# its own. A name says the style; what the teacher is shown is the demonstration, the source
# (`_source`) or both (`_both`), as in the paper's figure 7.
TEACHER_TEMPLATES = {
    # The paper's (arXiv 2601.19897, section 3); it does not print the one with a text, which is
    # ours in its words.
    "paper": [{"role": "user", "content": "{question}\n\n" + _EXAMPLE + _OWN}],
    "paper_source": [{"role": "user", "content": "{question}\n\n" + _SOURCE + _OWN}],
    "paper_both": [{"role": "user", "content": "{question}\n\n" + _SOURCE + _EXAMPLE + _OWN}],
    # That of the authors' released code: its white space and its full stop.
    "released": [{"role": "user", "content": "\n{question}\n\n" + _EXAMPLE + _OWN[:-1] + ".\n"}],
    "released_source": [
        {"role": "user", "content": "\n{question}\n\n" + _SOURCE + _OWN[:-1] + ".\n"}
    ],
    "released_both": [
        {"role": "user", "content": "\n{question}\n\n" + _SOURCE + _EXAMPLE + _OWN[:-1] + ".\n"}
    ],
    # Small models do not follow the sentences above, but they do imitate an earlier turn of their
    # own.
    "three_turn": [
        {"role": "user", "content": "{question}"},
        {"role": "assistant", "content": "{demonstration}"},
        {"role": "user", "content": "{question}"},
    ],
    "three_turn_source": [{"role": "user", "content": "{source}\n\n{question}"}],
    "three_turn_both": [
        {"role": "user", "content": "{source}\n\n{question}"},
        {"role": "assistant", "content": "{demonstration}"},
        {"role": "user", "content": "{question}"},
    ],
}
TEACHER_CONTEXTS = ("demonstration", "source", "both")
# Oracle retrieval (the paper's table 1): the text that holds the answer, found for the model and
# put before the question.
ORACLE_TEMPLATE = [{"role": "user", "content": "{source}\n\n{question}"}]
