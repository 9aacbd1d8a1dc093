"""MiLoRA: a LoRA of the smallest singular values (Wang et al. 2024, arXiv 2406.09044).

As `pissa`, with the ``rank`` smallest singular values of each weight instead of the largest: what
learns is what the weight uses least. In NB-LoRA's comparison (2026) it keeps little more than
`lora`: 15.8% of the reasoning instead of 13.9%.

Options, state and cost are those of `pissa`.
"""

from methods.parameters.pissa import PiSSA


class MiLoRA(PiSSA):
    largest = False
