"""The law of adaptive unmasking by enumeration, from its definition (mathematics.md E.5). Pure numpy float64.

A choice is a function (posteriors (L, V) at one state, masked positions) -> [(probability, positions to reveal)].
Nothing here calls the code under test.
"""

import itertools

import numpy as np
from oracles import toys, transitions


def entropies(post):
    return -(post * np.log(np.where(post > 0, post, 1.0))).sum(-1)


def scores(order, post):
    ordered = np.sort(post, -1)
    values = {"confidence": ordered[:, -1], "margin": ordered[:, -1] - ordered[:, -2], "entropy": -entropies(post)}
    return values[order]


def in_order(order, post, masked, block=None):
    """The masked positions, surest first; scores within 1e-6 are ties, of which the lower position comes first."""
    left, result = sorted(masked), []
    values = scores(order, post)
    while left:
        first = min(i // block for i in left) if block else 0
        inside = [i for i in left if not block or i // block == first]
        best = max(values[i] for i in inside)
        result.append(next(i for i in inside if values[i] >= best - 1e-6))
        left.remove(result[-1])
    return result


def by_count(order, k, block=None):
    def choice(post, masked):
        if order != "random":
            return [(1.0, in_order(order, post, masked, block)[:k])]
        subsets = list(itertools.combinations(masked, min(k, len(masked))))
        return [(1 / len(subsets), subset) for subset in subsets]

    return choice


def by_bound(order, gamma):
    def choice(post, masked):
        ordered = in_order(order, post, masked)
        h = entropies(post)[ordered]
        return [(1.0, ordered[: max(n for n in range(1, len(h) + 1) if n == 1 or h[:n].sum() - h[:n].max() <= gamma)])]

    return choice


def run(toy_name, choice):
    """The law over the V^L sequences, and the mean number of evaluations."""
    toy = toys.TOYS[toy_name]
    mask, posts = toy.vocab_size, transitions.posterior(toy_name, "mask", 0.5)
    laws, final, evaluations = {(mask,) * toy.length: 1.0}, {}, 0.0
    while laws:
        after = {}
        for state, mass in laws.items():
            masked = [i for i in range(toy.length) if state[i] == mask]
            if not masked:
                final[state] = final.get(state, 0.0) + mass
                continue
            evaluations += mass
            post = posts[np.ravel_multi_index(state, (mask + 1,) * toy.length)][:, :mask]
            for share, chosen in choice(post, masked):
                for tokens in itertools.product(range(mask), repeat=len(chosen)):
                    p = share * mass * np.prod([post[i, v] for i, v in zip(chosen, tokens, strict=True)])
                    if p > 0:
                        to = list(state)
                        for i, v in zip(chosen, tokens, strict=True):
                            to[i] = v
                        after[tuple(to)] = after.get(tuple(to), 0.0) + p
        laws = after
    law = np.zeros((mask,) * toy.length)
    for state, mass in final.items():
        law[state] = mass
    return law.reshape(-1), evaluations


def distance(law, toy_name):
    """Total variation to the data."""
    return 0.5 * np.abs(law - toys.TOYS[toy_name].q).sum()


def divergence(law, toy_name):
    """KL(data || law), nats."""
    q = toys.TOYS[toy_name].q
    return float((q[q > 0] * np.log(q[q > 0] / law[q > 0])).sum())
