"""MiLoRA: a LoRA of the smallest singular values (Wang et al. 2024, arXiv 2406.09044).

    W_0 = U S V^T,    A_0 = sqrt(S_r / s) V_r^T,    B_0 = U_r sqrt(S_r / s)

As `pissa`, but S_r are the ``rank`` smallest singular values of each weight, not the largest: what
learns is what the weight uses least. In NB-LoRA's comparison (2026) it keeps little more than
`lora`: 15.8% of the reasoning instead of 13.9%.

Options are those of `pissa`.

State: that of `pissa`. Cost: that of `pissa`.
"""

from methods.parameters.pissa import PiSSA


class MiLoRA(PiSSA):
    largest = False
