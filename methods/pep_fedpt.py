"""PEP-FedPT: shared prompts plus class prompts, which prototypes and the client's class prior mix for each input.

Source: arXiv 2510.25372 (TMLR 2026). From the abstract (paper): shared prompts and class-specific prompts; the
Class-Contextualised Mixed Prompt, with soft weights from global class prototypes and client class priors; plain FedAvg; no
parameter stays at a client. Everything else is our reading (ours) and therefore a field: token counts, similarity,
temperature, blocks, query and prototype updates. The mixture is the posterior mean of the class prompt given the query:
s_c(x) ~ pi_k(c) exp(sim(z(x), mu_c) / tau), m(x) = sum_c s_c(x) P_C[c].
"""

from dataclasses import dataclass

from fedbench.method import ClassPrompt as Base


@dataclass(frozen=True)
class Method(Base):
    """Shared prompts [P, D] at block 0, class prompts [C, n, D] mixed into n tokens at block `inject`, a shared head."""
