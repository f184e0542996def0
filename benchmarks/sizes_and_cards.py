"""The table of docs/scale.md: which sizes fit which cards, and hours for a billion tokens, in closed form.

    PYTHONPATH=. python benchmarks/sizes_and_cards.py

State is what a card holds whatever the batch: parameters, gradient and two moments, 16 bytes a parameter, split over
the cards (mesh.fsdp). Hours are the operations of `models.flops` at 25, 40 and 55 % of the card's peak. What a batch
takes beside the state, and what a step takes at least, the compiler says: `--mode=compile`.
"""

from dfm_jax import config as configs
from dfm_jax.models import flops
from dfm_jax.run import sizes
from dfm_jax.runtime import peaks

# Name -> as jax names it, and its memory in GB, which the makers count in thousands.
CARDS = {
    "RTX 4090": ("NVIDIA GeForce RTX 4090", 24),
    "A100 80 GB": ("NVIDIA A100-SXM4-80GB", 80),
    "H100 80 GB": ("NVIDIA H100 80GB HBM3", 80),
}
SIZES = ("uniform_gkl", "model_1_3b", "model_1_7b", "model_7b")
COUNTS = (1, 8)
SHARES = (0.25, 0.40, 0.55)
BYTES = 16  # of a parameter: itself, its gradient and two moments, in float32
ROOM = 0.75  # of the memory, for the state: the rest is for a batch


def rows() -> list[list[str]]:
    found = []
    for name in SIZES:
        config = configs.freeze(configs.load_file(str(configs.find_config(name))))
        parameters = sizes.least_parameters(config)
        per_token = 3 * flops.forward_per_token(config, 50257)
        for card, (kind, memory) in CARDS.items():
            peak = peaks.peak_of(kind)
            assert peak is not None, kind
            for count in COUNTS:
                state = BYTES * parameters / count / 1e9
                hours = [per_token * 1e9 / (count * share * peak) / 3600 for share in SHARES]
                fits = "yes" if state <= ROOM * memory else "no"
                times = " / ".join(f"{hour:.3g}" for hour in hours) if fits == "yes" else ""
                found.append(
                    [
                        f"`{name}` ({parameters / 1e9:.2f} G)",
                        f"{count} x {card}",
                        f"{state:.3g} of {memory}",
                        fits,
                        times,
                    ]
                )
    return found


def table() -> str:
    head = ["config (parameters)", "cards", "state, GB a card", "fits", "hours per 10⁹ tokens at 25 / 40 / 55 %"]
    lines = [head, ["---"] * len(head), *rows()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    print(table())
